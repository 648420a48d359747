"""A model of signals, from its sites to compiled code: 1-D windows are 2-D ones on maps of one row."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from compiling import lowered, outputs_of
from example_models import assert_close, in_onnx_runtime, normal, small_model

from gos_adapt.adaptation import Adaptation
from gos_adapt.finetune.capture import Activations
from gos_adapt.finetune.fit import fit
from gos_adapt.model.model import Replacement
from gos_adapt.model.sites import find_sites
from gos_adapt.model.splice import splice
from gos_adapt.model.torch_executor import TorchExecutor
from gos_adapt.operators.evaluate import evaluate
from gos_adapt.operators.seeds import seeds
from gos_adapt.operators.torch_form import TorchOperator
from tvm_passes import ReplaceOperators
from tvm_passes.compat import from_onnx, relax, tvm
from tvm_passes.schedules import Cpu

CPU = Cpu(lanes=8, registers=16, threads=2)
SIGNAL = ("N", 2, 40)


def signal_model():
    """Stem, a residual block with a dilated convolution, pooling, a strided depthwise layer, head."""
    nodes = [
        ("Conv", "x w0 b0", "c0", {"kernel_shape": [5], "pads": [2, 2]}),
        ("Relu", "c0", "r0", {}),
        ("Conv", "r0 w1 b1", "c1", {"kernel_shape": [3], "dilations": [2], "pads": [2, 2]}),
        ("Relu", "c1", "r1", {}),
        ("Conv", "r1 w2 b2", "c2", {"kernel_shape": [3], "pads": [1, 1]}),
        ("Add", "c2 r0", "s", {}),
        ("Relu", "s", "r2", {}),
        ("MaxPool", "r2", "m", {"kernel_shape": [2], "strides": [2]}),
        ("Conv", "m w3", "c3", {"kernel_shape": [5], "strides": [2], "auto_pad": "SAME_UPPER", "group": 8}),
        ("Tanh", "c3", "t", {}),
        ("GlobalAveragePool", "t", "p", {}),
        ("Flatten", "p", "f", {}),
        ("Gemm", "f w4 b4", "y", {}),
    ]
    shapes = {"w0": (8, 2, 5), "w1": (8, 8, 3), "w2": (8, 8, 3), "w3": (8, 1, 5), "w4": (8, 3), "b4": (3,)}
    shapes |= {"b0": (8,), "b1": (8,), "b2": (8,)}
    return small_model(nodes, SIGNAL, ["y"], [(name, 0.3 * normal(*shape)) for name, shape in shapes.items()])


def instructions(site):
    return [node.op for node in site.operator.nodes if node.op not in ("input", "weight")]


def tensors_of(model, names, x):
    with torch.no_grad():
        values = TorchExecutor(model.proto).compute({"x": torch.from_numpy(x)}, names)
    return {name: np.ascontiguousarray(value.numpy()) for name, value in zip(names, values, strict=True)}


def test_every_site_computes_what_the_model_computes():
    model = signal_model()
    sites = find_sites(model)
    assert Counter(site.kind for site in sites) == {"conv": 3, "branch": 1, "depthwise": 1, "pool": 2, "linear": 1}
    tensors = tensors_of(
        model, sorted({name for site in sites for name in (site.input, site.output)}), normal(2, 2, 40)
    )
    for site in sites:
        assert_close(evaluate(site.operator, [tensors[site.input]], site.weights), tensors[site.output])


def test_a_layer_is_reshaped_before_its_activation_which_a_fit_looks_for_at_the_end():
    layer = next(site for site in find_sites(signal_model()) if site.name == "r0")
    assert instructions(layer) == ["reshape", "cross_correlation", "channel_bias", "reshape", "relu"]
    assert (layer.input_shape, layer.output_shape) == ((2, 40), (8, 40))


def assert_read(nodes, constants, op):
    """The whole model is one branch with this instruction, and computes what the model computes."""
    model = small_model(nodes, SIGNAL, ["y"], [("w", normal(2, 2, 3)), *constants])
    (branch,) = (site for site in find_sites(model) if site.kind == "branch")
    assert branch.input == "x"
    assert op in instructions(branch)
    x = normal(2, 2, 40)
    assert_close(evaluate(branch.operator, [x], branch.weights), in_onnx_runtime(model.proto, x)[0])


CONV = ("Conv", "x w", "c", {"kernel_shape": [3], "pads": [1, 1]})


@pytest.mark.parametrize("shape", [(2, 1), (1, 2, 1), (1,), ()])
def test_a_constant_per_channel_is_read(shape):
    assert_read([CONV, ("Mul", "c k", "m", {}), ("Add", "m x", "y", {})], [("k", normal(*shape))], "cross_correlation")


def test_a_constant_that_differs_along_time_is_not_read():
    nodes = [CONV, ("Mul", "c k", "m", {}), ("Add", "m x", "y", {})]
    sites = find_sites(small_model(nodes, SIGNAL, ["y"], [("w", normal(2, 2, 3)), ("k", normal(40))]))
    assert [site.kind for site in sites] == ["conv"]


@pytest.mark.parametrize(
    ("op", "extra", "attributes", "constants", "instruction"),
    [
        ("Softmax", "", {"axis": -2}, {}, "softmax"),
        ("ReduceMean", "", {"axes": [-1]}, {}, "global_average_pool"),
        ("Slice", "a b d e", {}, {"a": [0], "b": [99], "d": [2], "e": [2]}, "subsample"),
        ("Slice", "a b d", {}, {"a": [1], "b": [2], "d": [-2]}, "channel_slice"),
        ("Pad", "a", {}, {"a": [0, 1, 0, 0, 2, 0]}, "pad_channels"),
        ("AveragePool", "", {"kernel_shape": [3], "pads": [1, 1], "strides": [2]}, {}, "average_pool"),
    ],
)
def test_axes_are_counted_with_the_row(op, extra, attributes, constants, instruction):
    nodes = [CONV, (op, f"c {extra}", "m", attributes), (op, f"x {extra}", "k", attributes), ("Add", "m k", "y", {})]
    assert_read(nodes, [(name, np.array(value)) for name, value in constants.items()], instruction)


@pytest.mark.parametrize("axis", [0, -1])
def test_a_softmax_along_time_or_over_samples_is_not_read(axis):
    nodes = [
        ("Conv", "x w", "c", {"kernel_shape": [1]}),
        ("Softmax", "c", "s", {"axis": axis}),
        ("Add", "s x", "y", {}),
    ]
    sites = find_sites(small_model(nodes, SIGNAL, ["y"], [("w", normal(2, 2, 1))]))
    assert [site.kind for site in sites] == ["pointwise"]


def test_a_convolution_over_three_axes_is_no_site():
    model = small_model([("Conv", "x w", "y", {})], ("N", 2, 5, 5, 5), ["y"], [("w", normal(2, 2, 3, 3, 3))])
    assert not find_sites(model)


def test_seeds_keep_one_row_and_can_be_fitted():
    layer = next(site for site in find_sites(signal_model()) if site.name == "r1")
    found = {seed.name.split(" at ")[0]: seed for seed in seeds(layer.operator)}
    assert {"original", "larger_kernel 1×5", "smaller_kernel 1×1", "strided_upsampled", "low_rank_in 4"} <= set(found)
    assert {"depthwise_pointwise 1×5", "depthwise_pooled_pointwise", "unfolded", "grouped 2"} <= set(found)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(normal(64, 8, 40).cumsum(axis=2))
    teacher = TorchOperator(layer.operator, layer.weights)
    for name, seed in found.items():
        weights = seed.initial(layer.weights, rng)
        assert evaluate(seed.graph, [x.numpy()], weights).shape == (64, 8, 40)
        if name in ("larger_kernel 1×5", "unfolded", "low_rank_in 4", "strided_upsampled"):
            error = fit(seed.graph, weights, teacher, Activations(x, x)).relative_error
            assert error < (1e-6 if name in ("larger_kernel 1×5", "unfolded") else 1)


def test_a_residual_block_of_signals_can_become_one_small_layer():
    branch = next(site for site in find_sites(signal_model()) if site.kind == "branch")
    found = {seed.name.split(" of ")[0]: seed for seed in seeds(branch.operator)}
    assert {"zero", "shortcut", "first_convolution", "bottleneck"} <= set(found)
    first = found["first_convolution"].initial(branch.weights, np.random.default_rng(0))
    np.testing.assert_array_equal(first[0], branch.weights[0])
    (core,) = (node for node in found["bottleneck"].graph.nodes if dict(node.hyper).get("kernel") == (1, 3))
    assert core.op == "cross_correlation"
    x = normal(2, 8, 40)
    np.testing.assert_array_equal(evaluate(found["shortcut"].graph, [x], ()), x)


LOSSLESS = {"r0": "unfolded", "r1": "larger_kernel 1×5", "m": "original", "t": "original"}
LOSSY = {"r0": "depthwise_pooled_pointwise", "r2": "low_rank_out 4", "m": "average_pool", "t": "strided_upsampled"}


@pytest.mark.parametrize("choice", [{}, LOSSLESS, LOSSY], ids=["none", "lossless", "lossy"])
def test_a_spliced_model_compiles_and_means_what_its_operators_mean(choice):
    model = signal_model()
    sites = {site.name: site for site in find_sites(model)}
    replacements = []
    for name, wanted in choice.items():
        seed = next(seed for seed in seeds(sites[name].operator) if seed.name.startswith(wanted))
        weights = seed.initial(sites[name].weights, np.random.default_rng(0))
        replacements.append(Replacement(name, seed.graph, weights))
    spliced = splice(model, tuple(replacements))
    assert set(choice) <= {node.output[0] for node in spliced.proto.graph.node}
    x = normal(1, 2, 40)
    expected = in_onnx_runtime(spliced.proto, x)[0]
    (compiled,) = outputs_of(lowered(spliced.proto, CPU), x)
    np.testing.assert_allclose(compiled, expected, rtol=1e-4, atol=1e-5)
    tensors = tensors_of(spliced, sorted({name for r in choice for name in (sites[r].input, r)}), x)
    for replacement in replacements:
        site = sites[replacement.site]
        assert_close(
            evaluate(replacement.operator, [tensors[site.input]], replacement.weights), tensors[site.output], 1e-4
        )
    module = from_onnx(model.original, shape_dict={"x": list(x.shape)})
    replaced = ReplaceOperators(Adaptation.of(model, replacements))(module)
    machine = relax.VirtualMachine(tvm.compile(replaced, "llvm"), tvm.cpu())
    np.testing.assert_allclose(machine["main"](tvm.runtime.tensor(x)).numpy(), expected, rtol=1e-4, atol=1e-5)
    if choice is not LOSSY:
        np.testing.assert_allclose(expected, in_onnx_runtime(model.proto, x)[0], rtol=1e-4, atol=1e-5)
