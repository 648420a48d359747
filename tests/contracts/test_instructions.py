"""Every instruction, by being listed: one meaning in numpy, torch and ONNX Runtime, and a shape rule that is total."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from gos_adapt.errors import Rejection
from gos_adapt.instructions import INSTRUCTIONS
from gos_adapt.instructions.base import Kind
from gos_adapt.operators.onnx_form import GraphEmitter

WINDOW = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1, 1, 1)}
CONVOLUTION = WINDOW | {"channels": 4, "dilation": (1, 1), "groups": 1}
MAP, VECTOR = (4, 6, 5), (7,)
ANY_RANK = (((MAP,), {}), ((VECTOR,), {}), (((2, 3),), {}))
PAIRS = (((MAP, MAP), {}), ((VECTOR, VECTOR), {}))
POOLS = (
    ((MAP,), WINDOW),
    ((MAP,), {"kernel": (2, 3), "stride": (2, 1), "padding": (0, 1, 1, 2)}),
    ((MAP,), {"kernel": (1, 1), "stride": (2, 2), "padding": (0, 0, 0, 0)}),
)

CASES = {
    "cross_correlation": (
        ((MAP, (4, 4, 3, 3)), CONVOLUTION),
        ((MAP, (4, 1, 3, 3)), CONVOLUTION | {"groups": 4}),
        ((MAP, (8, 2, 1, 1)), CONVOLUTION | {"groups": 2, "kernel": (1, 1), "channels": 8, "padding": (0, 0, 0, 0)}),
        ((MAP, (4, 4, 3, 2)), CONVOLUTION | {"kernel": (3, 2), "dilation": (1, 2)}),
        ((MAP, (4, 4, 3, 3)), CONVOLUTION | {"stride": (2, 1), "padding": (0, 2, 1, 0)}),
    ),
    "matrix_product": (((VECTOR, (7, 3)), {"channels": 3}), (((1,), (1, 1)), {"channels": 1})),
    "weight_product": ((((5, 2), (2, 3)), {}),),
    "channel_bias": (((MAP, (4,)), {}), ((VECTOR, (7,)), {})),
    "channel_scale": (((MAP, (4,)), {}), ((VECTOR, (7,)), {})),
    "subtract": PAIRS,
    "relu": ANY_RANK,
    "relu6": ANY_RANK,
    "leaky_relu": (((MAP,), {"slope": 0.01}), ((VECTOR,), {"slope": 0.03})),
    "sigmoid": ANY_RANK,
    "hard_sigmoid": ANY_RANK,
    "tanh": ANY_RANK,
    "hard_swish": ANY_RANK,
    "softmax": ANY_RANK,
    "max_pool": POOLS,
    "average_pool": POOLS,
    "global_average_pool": (((MAP,), {}),),
    "add": PAIRS,
    "mean": PAIRS,
    "hadamard": PAIRS,
    "maximum": PAIRS,
    "minimum": PAIRS,
    "concat": (*PAIRS, ((MAP, (2, 6, 5)), {})),
    "identity": ANY_RANK,
    "zero": (((MAP,), {"shape": MAP}), ((MAP,), {"shape": (3,)}), ((VECTOR,), {"shape": (2, 3, 3)})),
    "channel_slice": (((MAP,), {"start": 1, "stop": 3}), ((VECTOR,), {"start": 0, "stop": 1})),
    "pad_channels": (((MAP,), {"before": 1, "after": 2}), ((VECTOR,), {"before": 0, "after": 3})),
    "subsample": (((MAP,), {"stride": (2, 2)}), ((MAP,), {"stride": (1, 4)})),
    "shift": (((MAP,), {"offset": (1, -2)}), ((MAP,), {"offset": (-5, 0)}), ((MAP,), {"offset": (0, 4)})),
    "channel_shuffle": (((MAP,), {"groups": 2}), (((6,),), {"groups": 3})),
    "reshape": (((MAP,), {"shape": (2, 60)}), ((MAP,), {"shape": (120,)}), (((6,),), {"shape": (3, 2, 1)})),
    "flatten": ANY_RANK,
    "upsample": (((MAP,), {"factor": (2, 2)}), ((MAP,), {"factor": (1, 3)})),
}
MEMBERS = [(name, shapes, hyper) for name, cases in CASES.items() for shapes, hyper in cases]
INFERRED = [member for member in MEMBERS if INSTRUCTIONS[member[0]].result is Kind.FEATURE]
"""What is computed at inference: the rest is folded before anything is compiled."""
FEATURES = ((1024, 32, 32), (1024,), (512, 32, 32), (768, 32, 32), (12, 32, 32))


def test_every_instruction_has_a_case():
    assert set(CASES) == set(INSTRUCTIONS)


def test_a_feature_needs_an_onnx_form_and_a_weight_must_not_have_one():
    for name in ("relu", "weight_product"):
        row = INSTRUCTIONS[name]
        with pytest.raises(ValueError, match=f"{name}: an ONNX form belongs to a result that is a feature"):
            replace(row, onnx=None if row.onnx else INSTRUCTIONS["relu"].onnx)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("name", "shapes", "hyper"), MEMBERS)
def test_numpy_and_torch_agree_with_each_other_and_with_the_shape_rule(name, shapes, hyper, batch):
    instruction = INSTRUCTIONS[name]
    arguments = _arguments(instruction, shapes, batch)
    meaning = instruction.numpy(*arguments, **hyper)
    batches = (batch,) if instruction.result is Kind.FEATURE else ()
    assert meaning.shape == (*batches, *instruction.infer(shapes, hyper))
    assert meaning.dtype == np.float32
    in_torch = instruction.torch(*map(torch.from_numpy, arguments), **hyper)
    assert in_torch.dtype == torch.float32
    np.testing.assert_allclose(in_torch.numpy(), meaning, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("name", "shapes", "hyper"), INFERRED)
def test_onnx_runtime_computes_what_numpy_means(name, shapes, hyper, batch):
    instruction = INSTRUCTIONS[name]
    arguments = _arguments(instruction, shapes, batch)
    meaning = instruction.numpy(*arguments, **hyper)
    for opset in (17, 18, 19, 20):
        in_onnx = _run_onnx(instruction, shapes, hyper, arguments, opset)
        np.testing.assert_allclose(in_onnx, meaning, rtol=1e-5, atol=1e-5)


def _arguments(instruction, shapes, batch):
    rng = np.random.default_rng(0)
    return [
        rng.normal(0, 3, (batch, *shape) if kind is Kind.FEATURE else shape).astype(np.float32)
        for kind, shape in zip(instruction.arguments, shapes, strict=True)
    ]


def _run_onnx(instruction, shapes, hyper, arguments, opset):
    emitter = GraphEmitter()
    names = tuple(f"x{k}" for k in range(len(shapes)))
    result = instruction.onnx(emitter, names, shapes, hyper)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *s] if kind is Kind.FEATURE else s)
        for name, s, kind in zip(names, shapes, instruction.arguments, strict=True)
    ]
    output = helper.make_tensor_value_info(result, TensorProto.FLOAT, ["N", *instruction.infer(shapes, hyper)])
    model = helper.make_model(
        helper.make_graph(emitter.nodes, "case", inputs, [output], emitter.initializers),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(names, arguments, strict=True)))[0]


@pytest.mark.parametrize(("name", "shapes", "hyper"), MEMBERS)
def test_torch_form_is_differentiable(name, shapes, hyper):
    instruction = INSTRUCTIONS[name]
    arguments = [
        torch.ones((2, *shape) if kind is Kind.FEATURE else shape, requires_grad=True)
        for kind, shape in zip(instruction.arguments, shapes, strict=True)
    ]
    result = instruction.torch(*arguments, **hyper)
    if name != "zero":
        result.sum().backward()
        assert all(a.grad is not None and bool(torch.isfinite(a.grad).all()) for a in arguments)


@pytest.mark.parametrize(("name", "shapes", "hyper"), [member for member in MEMBERS if member[2]])
def test_a_missing_an_unknown_and_a_senseless_setting_are_rejected(name, shapes, hyper):
    infer = INSTRUCTIONS[name].infer
    setting = next(iter(hyper))
    assert isinstance(infer(shapes, {k: v for k, v in hyper.items() if k != setting}), Rejection)
    assert isinstance(infer(shapes, hyper | {"unknown": 1}), Rejection)
    for senseless in (-(10**6), 10**9, float("nan"), (), (0,) * 9, True):
        assert isinstance(infer(shapes, hyper | {setting: senseless}), Rejection)


@pytest.mark.parametrize("name", [name for name, row in INSTRUCTIONS.items() if row.hyperparameters])
def test_every_legal_value_type_checks_somewhere(name):
    instruction = INSTRUCTIONS[name]
    settings = instruction.hyperparameters
    for setting, values in settings.items():
        for value in values:
            others = settings | {setting: (value,)}
            assert any(
                _type_checks(instruction, feature, dict(zip(others, chosen, strict=True)))
                for chosen in product(*others.values())
                for feature in FEATURES
            ), (setting, value)


def _type_checks(instruction, feature, hyper):
    features = (feature,) * instruction.arguments.count(Kind.FEATURE)
    shapes = features + instruction.weight_shapes(features, hyper)
    return not isinstance(instruction.infer(shapes, hyper), Rejection)


@pytest.mark.parametrize(("name", "shapes", "hyper"), MEMBERS)
def test_weight_shapes_are_the_ones_the_shape_rule_wants(name, shapes, hyper):
    instruction = INSTRUCTIONS[name]
    features = shapes[: instruction.arguments.count(Kind.FEATURE)]
    if features:
        assert features + instruction.weight_shapes(features, hyper) == shapes
