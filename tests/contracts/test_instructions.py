"""Every instruction, by being listed: one meaning in numpy, torch and ONNX Runtime, and a shape rule that is total."""

from __future__ import annotations

import math
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
from gos_adapt.instructions.calculus import FUNCTIONS, JOINS
from gos_adapt.instructions.expression import SYMBOLS
from gos_adapt.operators.builder import Builder
from gos_adapt.operators.evaluate import evaluate
from gos_adapt.operators.onnx_form import GraphEmitter, to_onnx
from gos_adapt.operators.torch_form import TorchOperator

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

TALL, WIDE, SQUARE = (5, 3), (2, 4), (3, 3)
MATRICES = (((TALL,), {}), ((WIDE,), {}), ((SQUARE,), {}), (((1, 1),), {}))
WEIGHT_PAIRS = (((TALL, TALL), {}), ((VECTOR, VECTOR), {}), (((4, 2, 3, 3),) * 2, {}))
ORDERS = ({"order": 1}, {"order": 2})
AXES = tuple(((MAP,), {"axis": axis}) for axis in range(3))

ATTENTION = (
    ((MAP, MAP, MAP), {"heads": 2}),
    (((4, 1, 5), (4, 2, 3), (6, 2, 3)), {"heads": 1}),
    (((8, 1, 7), (8, 1, 7), (8, 1, 7)), {"heads": 4}),
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
    "matrix_vector_product": ((((4, 6), (6,)), {}), (((1, 1), (1,)), {})),
    "dot_product": PAIRS,
    "outer_product": (((VECTOR, (3,)), {}), (((1,), (1,)), {})),
    "attention": ATTENTION,
    "linear_attention": ATTENTION,
    "transpose": (((TALL,), {}), ((WIDE,), {})),
    "scale": (((MAP, (1,)), {}), ((VECTOR, (1,)), {})),
    "vector_norm": tuple(((shape,), order) for shape in (MAP, VECTOR) for order in ORDERS),
    "frobenius_norm": (((MAP,), {}),),
    "weight_product": ((((5, 2), (2, 3)), {}),),
    "weight_add": WEIGHT_PAIRS,
    "weight_subtract": WEIGHT_PAIRS,
    "weight_hadamard": WEIGHT_PAIRS,
    "weight_scale": (((TALL, (1,)), {}), (((4, 2, 3, 3), (1,)), {})),
    "weight_matrix_vector_product": (((TALL, (3,)), {}),),
    "weight_dot_product": (((VECTOR, VECTOR), {}),),
    "weight_outer_product": (((VECTOR, (3,)), {}),),
    "kronecker_product": (((TALL, WIDE), {}), (((1, 3), (2, 1)), {})),
    "weight_reshape": (((TALL,), {"shape": (15,)}), (((6, 4),), {"shape": (2, 3, 2, 2)})),
    "weight_transpose": (
        ((TALL,), {"axes": (1, 0)}),
        (((4, 2, 3, 1),), {"axes": (1, 3, 0, 2)}),
        ((VECTOR,), {"axes": (0,)}),
    ),
    "diagonal_matrix": (((VECTOR,), {}),),
    "identity_matrix": (((), {"size": 4}),),
    "zero_matrix": (((), {"shape": (3, 2)}),),
    "inverse": tuple(((shape,), {"ridge": ridge}) for shape in (SQUARE, (1, 1)) for ridge in (1e-6, 0.01)),
    "pseudo_inverse": MATRICES,
    "determinant": (((SQUARE,), {}), (((1, 1),), {})),
    "trace": (((SQUARE,), {}),),
    "rank": MATRICES,
    "weight_vector_norm": tuple(((VECTOR,), order) for order in ORDERS),
    "matrix_norm": tuple((case[0], order) for case in MATRICES for order in ORDERS),
    "weight_frobenius_norm": (*MATRICES, (((4, 2, 3, 3),), {})),
    "svd": tuple(((shape,), {"factor": f, "rank": r}) for shape in (TALL, WIDE) for f in range(3) for r in (1, 2)),
    "eigen": (
        *(((SQUARE,), {"factor": f, "rank": r}) for f in range(2) for r in (2, 3)),
        (((1, 1),), {"factor": 1, "rank": 1}),
    ),
    "qr": tuple((case[0], {"factor": f}) for case in MATRICES for f in range(2)),
    "cholesky": tuple((case[0], {"ridge": 1e-4}) for case in MATRICES),
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
    "divide": PAIRS,
    "weighted_mean": (((MAP, MAP, (4,)), {}), ((VECTOR, VECTOR, (7,)), {})),
    "weighted_sum": (((MAP, MAP, (4,), (4,)), {}), ((VECTOR, VECTOR, (7,), (7,)), {})),
    "square_root": ANY_RANK,
    "power": tuple(((MAP,), {"exponent": exponent}) for exponent in range(2, 9)),
    "sum_along": (*AXES, ((VECTOR,), {"axis": 0})),
    "mean_along": (*AXES, ((VECTOR,), {"axis": 0})),
    "maximum_along": (*AXES, ((VECTOR,), {"axis": 0})),
    "minimum_along": (*AXES, ((VECTOR,), {"axis": 0})),
    "normal_density": ANY_RANK,
    "laplace_density": ANY_RANK,
    "logistic_density": ANY_RANK,
    "bayes_rule": (((MAP, (4,)), {}), ((VECTOR, (7,)), {})),
    "derivative": tuple(((VECTOR,), {"of": of}) for of in FUNCTIONS),
    "partial_derivative": tuple(((MAP, MAP), {"of": of, "argument": k}) for of in JOINS for k in (0, 1)),
    "chain_rule": tuple(
        ((VECTOR,), {"outer": outer, "inner": inner}) for outer in FUNCTIONS for inner in ("tanh", "relu")
    ),
    "gradient": (*AXES, ((VECTOR,), {"axis": 0}), (((2, 2),), {"axis": 1})),
    "identity": ANY_RANK,
    "tile": (((MAP,), {"columns": 4}),),
    "unroll": (((VECTOR,), {"steps": 2}),),
    "zero": (((MAP,), {"shape": MAP}), ((MAP,), {"shape": (3,)}), ((VECTOR,), {"shape": (2, 3, 3)})),
    "channel_slice": (((MAP,), {"start": 1, "stop": 3}), ((VECTOR,), {"start": 0, "stop": 1})),
    "pad_channels": (((MAP,), {"before": 1, "after": 2}), ((VECTOR,), {"before": 0, "after": 3})),
    "subsample": (((MAP,), {"stride": (2, 2)}), ((MAP,), {"stride": (1, 4)})),
    "shift": (((MAP,), {"offset": (1, -2)}), ((MAP,), {"offset": (-5, 0)}), ((MAP,), {"offset": (0, 4)})),
    "channel_shuffle": (((MAP,), {"groups": 2}), (((6,),), {"groups": 3})),
    "reshape": (((MAP,), {"shape": (2, 60)}), ((MAP,), {"shape": (120,)}), (((6,),), {"shape": (3, 2, 1)})),
    "flatten": ANY_RANK,
    "upsample": (((MAP,), {"factor": (2, 2)}), ((MAP,), {"factor": (1, 3)})),
    "unfold": (
        ((MAP,), WINDOW | {"dilation": (1, 1)}),
        ((MAP,), {"kernel": (2, 3), "stride": (2, 1), "padding": (0, 1, 1, 2), "dilation": (1, 1)}),
        ((MAP,), {"kernel": (3, 2), "stride": (1, 2), "padding": (0, 0, 0, 0), "dilation": (2, 3)}),
        ((MAP,), {"kernel": (1, 1), "stride": (2, 2), "padding": (0, 0, 0, 0), "dilation": (1, 1)}),
    ),
}
MEMBERS = [(name, shapes, hyper) for name, cases in CASES.items() for shapes, hyper in cases]
INFERRED = [member for member in MEMBERS if INSTRUCTIONS[member[0]].result is Kind.FEATURE]
"""What is computed at inference: the rest is folded before anything is compiled."""
FOLDED = [member for member in MEMBERS if member not in INFERRED]
CONSTANT = {"zero", "identity_matrix", "zero_matrix", "rank"}
"""Has no derivative but zero."""
FEATURES = ((1024, 32, 32), (1024,), (512, 32, 32), (768, 32, 32), (12, 32, 32))
WEIGHTS = ((1024,), (256, 256), (64, 32, 3, 3))


THESIS = {
    "matrix product": ("matrix_product", "weight_product"),
    "addition": ("add", "weight_add"),
    "subtraction": ("subtract", "weight_subtract"),
    "matrix-vector product": ("matrix_vector_product", "weight_matrix_vector_product"),
    "inverse": ("inverse",),
    "dot product": ("dot_product", "weight_dot_product"),
    "determinant": ("determinant",),
    "trace": ("trace",),
    "eigen-decomposition": ("eigen",),
    "singular value decomposition": ("svd",),
    "QR decomposition": ("qr",),
    "Cholesky decomposition": ("cholesky",),
    "pseudo-inverse": ("pseudo_inverse",),
    "rank": ("rank",),
    "Hadamard product": ("hadamard", "weight_hadamard"),
    "Kronecker product": ("kronecker_product",),
    "outer product": ("outer_product", "weight_outer_product"),
    "vector norm": ("vector_norm", "weight_vector_norm"),
    "matrix norm": ("matrix_norm",),
    "Frobenius norm": ("frobenius_norm", "weight_frobenius_norm"),
    "identity matrix": ("identity_matrix",),
    "zero matrix": ("zero_matrix",),
    "gradient": ("gradient",),
    "partial derivative": ("derivative", "partial_derivative"),
    "chain rule": ("chain_rule",),
    "sigmoid": ("sigmoid",),
    "ReLU": ("relu",),
    "tanh": ("tanh",),
    "softmax": ("softmax",),
    "cross-correlation": ("cross_correlation",),
    "max pooling": ("max_pool",),
    "average pooling": ("average_pool",),
    "probability distributions": ("normal_density", "laplace_density", "logistic_density"),
    "Bayes' rule": ("bayes_rule",),
    "sum": ("sum_along", "weighted_sum"),
    "mean": ("mean_along", "global_average_pool"),
    "maximum": ("maximum", "maximum_along"),
    "minimum": ("minimum", "minimum_along"),
    "square root": ("square_root",),
    "concatenation": ("concat",),
    "weighted mean": ("weighted_mean",),
    "loop tiling": ("tile",),
    "loop unrolling": ("unroll",),
}
"""Every row of the thesis' table 4.3, by the instructions that it is here."""


def test_every_row_of_the_thesis_is_there_and_has_cases():
    names = {name for row in THESIS.values() for name in row}
    assert names <= set(INSTRUCTIONS)
    assert names <= set(CASES)


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


@pytest.mark.parametrize(("name", "shapes", "hyper"), FOLDED)
def test_what_gives_a_weight_is_folded_out_of_an_operator_in_onnx_and_torch(name, shapes, hyper):
    graph, x, weights = scaled_by(name, shapes, hyper)
    meaning = evaluate(graph, [x], weights)
    direct = INSTRUCTIONS[name].numpy(*weights, **hyper)
    np.testing.assert_allclose(meaning, x * direct.reshape(-1), rtol=1e-6)
    model = to_onnx(graph, weights)
    assert [node.op_type for node in model.graph.node] == ["Mul", "Identity"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x0": x})[0], meaning, rtol=1e-6)
    in_torch = TorchOperator(graph, weights)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(in_torch, meaning, rtol=1e-5, atol=1e-5)


def scaled_by(name, shapes, hyper):
    """The operator that scales a vector by what this instruction gives; an input for it, and weights."""
    b = Builder()
    value = b.apply(name, *(b.weight(*shape) for shape in shapes), **hyper)
    size = math.prod(b.shape(value))
    b.apply("channel_scale", b.input(size), b.apply("weight_reshape", value, shape=(size,)))
    x = np.random.default_rng(1).normal(size=(2, size)).astype(np.float32)
    return b.graph(), x, _arguments(INSTRUCTIONS[name], shapes, 2)


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


@pytest.mark.parametrize("value", [1.0, 0.0, -300.0, 300.0])
@pytest.mark.parametrize(("name", "shapes", "hyper"), INFERRED)
def test_torch_form_has_a_finite_gradient_in_all_that_the_equation_depends_on(name, shapes, hyper, value):
    instruction = INSTRUCTIONS[name]
    arguments = [
        torch.full((2, *shape) if kind is Kind.FEATURE else shape, value, requires_grad=True)
        for kind, shape in zip(instruction.arguments, shapes, strict=True)
    ]
    symbols = SYMBOLS[: len(arguments)]
    used = instruction.equation(*symbols, **hyper).free_symbols
    result = instruction.torch(*arguments, **hyper)
    assert result.requires_grad == bool(used)
    if used:
        result.sum().backward()
    for symbol, argument in zip(symbols, arguments, strict=True):
        assert (argument.grad is not None) == (symbol in used)
        assert argument.grad is None or bool(torch.isfinite(argument.grad).all())


@pytest.mark.parametrize(("name", "shapes", "hyper"), FOLDED)
def test_torch_form_of_what_gives_a_weight_is_differentiable(name, shapes, hyper):
    instruction = INSTRUCTIONS[name]
    arguments = [torch.ones(shape, requires_grad=True) for shape in shapes]
    result = instruction.torch(*arguments, **hyper)
    if name not in CONSTANT:
        result.sum().backward()
        assert all(a.grad is not None and bool(torch.isfinite(a.grad).all()) for a in arguments)


@pytest.mark.parametrize("name", ["channel_bias", "channel_scale", "weighted_mean", "derivative"])
def test_an_equation_is_computed_in_the_precision_of_its_features(name):
    instruction = INSTRUCTIONS[name]
    shapes, hyper = CASES[name][0]
    arguments = [
        torch.ones((2, *shape), dtype=torch.bfloat16) if kind is Kind.FEATURE else torch.ones(shape)
        for kind, shape in zip(instruction.arguments, shapes, strict=True)
    ]
    assert instruction.torch(*arguments, **hyper).dtype == torch.bfloat16


@pytest.mark.parametrize("of", [*FUNCTIONS, *JOINS])
def test_a_derivative_is_the_gradient_of_its_instruction(of):
    row = INSTRUCTIONS[of]
    rng = np.random.default_rng(0)
    points = [torch.from_numpy(rng.normal(0, 3, (64,))).requires_grad_() for _ in row.arguments]
    gradients = torch.autograd.grad(row.torch(*points).sum(), points)
    arguments = [point.detach().numpy() for point in points]
    if of in FUNCTIONS:
        actual = [INSTRUCTIONS["derivative"].numpy(*arguments, of=of)]
    else:
        actual = [INSTRUCTIONS["partial_derivative"].numpy(*arguments, of=of, argument=k) for k in (0, 1)]
    for found, gradient in zip(actual, gradients, strict=True):
        np.testing.assert_allclose(found, gradient.numpy(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("outer", "inner"), list(product(FUNCTIONS, FUNCTIONS)))
def test_the_chain_rule_is_the_gradient_of_the_composition(outer, inner):
    point = torch.linspace(-4.05, 7.0, 64, dtype=torch.float64).requires_grad_()  # off every kink
    composed = INSTRUCTIONS[outer].torch(INSTRUCTIONS[inner].torch(point)).sum()
    (gradient,) = torch.autograd.grad(composed, point)
    actual = INSTRUCTIONS["chain_rule"].torch(point.detach(), outer=outer, inner=inner)
    np.testing.assert_allclose(actual.numpy(), gradient.numpy(), rtol=1e-6, atol=1e-9)


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
    if features:
        shapes = features + instruction.weight_shapes(features, hyper)
        return not isinstance(instruction.infer(shapes, hyper), Rejection)
    choices = product(WEIGHTS, repeat=len(instruction.arguments))
    return any(not isinstance(instruction.infer(shapes, hyper), Rejection) for shapes in choices)


@pytest.mark.parametrize(("name", "shapes", "hyper"), MEMBERS)
def test_weight_shapes_are_the_ones_the_shape_rule_wants(name, shapes, hyper):
    instruction = INSTRUCTIONS[name]
    features = shapes[: instruction.arguments.count(Kind.FEATURE)]
    if features:
        assert features + instruction.weight_shapes(features, hyper) == shapes
