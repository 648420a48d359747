from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from compiling import expected, generated, graph, lowered, outputs_of, random
from onnx import helper

from device_targets import host
from gos_adapt.errors import ModelImportError
from gos_adapt.operators.builder import Builder
from gos_adapt.operators.evaluate import evaluate
from gos_adapt.operators.graph import OperatorGraph
from gos_adapt.operators.onnx_form import to_onnx
from tvm_passes.build import target_of
from tvm_passes.compat import tvm
from tvm_passes.frontend import import_onnx
from tvm_passes.schedules import Cpu, Packing

if TYPE_CHECKING:
    from tvm_passes.pipeline import Lowered

AVX2 = Cpu(lanes=8, registers=16, threads=2)
NEON = Cpu(lanes=4, registers=32, threads=4)
SCALAR = Cpu(lanes=1, registers=16, threads=1)


def conv(channels: tuple[int, int], kernel: tuple[int, int], **attributes: Any) -> onnx.ModelProto:
    size = attributes.pop("size", (12, 12))
    groups = attributes.get("group", 1)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], kernel_shape=kernel, **attributes)
    weights = {"w": random(channels[1], channels[0] // groups, *kernel), "b": random(channels[1], seed=1)}
    return graph([node], (1, channels[0], *size), weights, {"y": 4})


def residual() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c1", "r0"], ["a"]),
        helper.make_node("Relu", ["a"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["p"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["y"], transB=1),
    ]
    weights = {
        "w0": random(16, 3, 3, 3, seed=1), "b0": random(16, seed=2),
        "w1": random(16, 16, 3, 3, seed=3), "b1": random(16, seed=4),
        "w2": random(10, 16, seed=5), "b2": random(10, seed=6),
    }  # fmt: skip
    return graph(nodes, (1, 3, 16, 16), weights, {"y": 2})


CASES = {
    "3x3": conv((16, 32), (3, 3), pads=[1, 1, 1, 1]),
    "3x3 stride 2": conv((16, 32), (3, 3), pads=[1, 1, 1, 1], strides=[2, 2]),
    "asymmetric pads": conv((8, 16), (3, 3), pads=[0, 0, 1, 1], strides=[2, 2]),
    "1x1": conv((24, 40), (1, 1)),
    "1x1 stride 2": conv((16, 32), (1, 1), strides=[2, 2]),
    "stem of 3 channels": conv((3, 16), (7, 7), pads=[3, 3, 3, 3], strides=[2, 2], size=(20, 20)),
    "7x7 maps": conv((32, 64), (3, 3), pads=[1, 1, 1, 1], size=(7, 7)),
    "odd sizes": conv((8, 16), (3, 3), pads=[1, 1, 1, 1], size=(11, 5)),
    "dilated": conv((16, 16), (3, 3), pads=[2, 2, 2, 2], dilations=[2, 2]),
    "dilated in one direction": conv((16, 16), (3, 3), pads=[1, 2, 1, 2], dilations=[1, 2]),
    "grouped": conv((16, 32), (3, 3), pads=[1, 1, 1, 1], group=4),
    "depthwise": conv((24, 24), (3, 3), pads=[1, 1, 1, 1], group=24),
    "depthwise 5x5 stride 2": conv((16, 16), (5, 5), pads=[2, 2, 2, 2], strides=[2, 2], group=16),
    "channels no vector divides": conv((5, 7), (3, 3), pads=[1, 1, 1, 1]),
    "output of one place": conv((16, 16), (12, 12)),
    "residual network": residual(),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cpu", [AVX2, NEON, SCALAR], ids=["avx2", "neon", "scalar"])
def test_compiled_kernels_compute_what_onnx_runtime_computes(name: str, cpu: Cpu) -> None:
    proto = CASES[name]
    array = random(*(dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim), seed=9)
    (got,), (wanted,) = outputs_of(lowered(proto, cpu), array), expected(proto, array)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("nodes", "weights", "rank"),
    [
        ([helper.make_node("Softmax", ["x"], ["y"], axis=1)], {}, 4),
        ([helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 3, 1])], {}, 4),
        ([helper.make_node("Concat", ["x", "x"], ["y"], axis=1)], {}, 4),
        ([helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])], {}, 4),
        ([helper.make_node("GlobalAveragePool", ["x"], ["y"])], {}, 4),
        ([helper.make_node("HardSwish", ["x"], ["y"])], {}, 4),
        ([helper.make_node("ReduceMax", ["x"], ["y"], axes=[2, 3], keepdims=0)], {}, 2),
        (
            [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])],
            {"w": random(16 * 36, 33)},
            2,
        ),
    ],
    ids=["softmax", "transpose", "concat", "average pool", "global pool", "hard swish", "reduce max", "matmul"],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_other_kernels_compute_what_onnx_runtime_computes(
    nodes: list[onnx.NodeProto], weights: dict[str, Any], rank: int, batch: int
) -> None:
    proto = graph(nodes, (batch, 16, 6, 6), weights, {"y": rank})
    array = random(batch, 16, 6, 6, seed=9)
    (got,), (wanted,) = outputs_of(lowered(proto, AVX2, batch=batch), array), expected(proto, array)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["vector_norm", "frobenius_norm", "dot_product", "scale", "outer_product", "matrix"])
def test_linear_algebra_between_blocked_kernels_computes_its_meaning(name: str) -> None:
    b = Builder()
    x = b.convolution(b.input(16, 6, 6), 8, (1, 1))
    pooled = b.apply("global_average_pool", x)
    match name:
        case "vector_norm":
            x = b.apply(name, x, order=2)
        case "frobenius_norm":
            x = b.apply("add", pooled, b.apply(name, x))
        case "dot_product":
            x = b.apply(name, x, b.apply("relu", x))
        case "scale":
            x = b.apply(name, x)
        case "outer_product":
            x = b.apply(name, pooled, b.apply("relu", pooled))
        case "matrix":
            x = b.apply("matrix_vector_product", b.apply("reshape", x, shape=(36, 8)), pooled)
    if len(b.shape(x)) == 3:
        b.convolution(x, 8, (1, 1))
    operator = b.graph()
    assert isinstance(operator, OperatorGraph)
    array, weights = random(3, 16, 6, 6), [random(*shape, seed=1) for shape in operator.weight_shapes]
    (got,) = outputs_of(lowered(to_onnx(operator, weights), AVX2, batch=3), array)
    wanted = evaluate(operator, [array], weights)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_kernel_of_several_results_computes_each_in_a_pass_of_its_own() -> None:
    proto = graph([helper.make_node("Split", ["x"], ["y", "z"], axis=1)], (1, 16, 6, 6), {}, {"y": 4, "z": 4})
    array, result = random(1, 16, 6, 6), lowered(proto, AVX2)
    for got, wanted in zip(outputs_of(result, array), expected(proto, array), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert [kernel.rule for kernel in result.kernels] == ["rows"]


def test_every_kernel_knows_the_onnx_tensors_it_computes() -> None:
    result = lowered(residual(), AVX2)
    assert [set(kernel.tensors) for kernel in result.kernels if "c1" in kernel.tensors] == [{"c1", "a", "r1"}]
    computed = {name for kernel in result.kernels for name in kernel.tensors}
    assert computed >= {"c0", "r0", "c1", "a", "r1", "p", "y"}


def test_no_kernel_of_a_residual_network_is_left_unscheduled() -> None:
    assert {kernel.rule for kernel in lowered(residual(), AVX2).kernels} <= {
        "tiled reduction",
        "winograd",
        "elementwise",
    }


def test_feature_maps_between_kernels_are_blocked_and_the_models_own_are_not() -> None:
    result = lowered(residual(), AVX2)
    first = next(kernel for kernel in result.kernels if "c0" in kernel.tensors)
    (taken, _), *_, (given, _) = first.parameters
    assert taken == (1, 3, 16, 16)
    assert given == (1, 2, 16, 16, 8)
    assert result.parameters == {"main": (((1, 3, 16, 16), "float32"),)}


def test_equal_layers_share_one_kernel() -> None:
    nodes = [
        helper.make_node("Conv", [source, f"w{i}"], [target], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        for i, (source, target) in enumerate((("x", "a"), ("a", "b"), ("b", "c"), ("c", "y")))
    ]
    proto = graph(nodes, (1, 16, 8, 8), {f"w{i}": random(16, 16, 3, 3, seed=i) for i in range(4)}, {"y": 4})
    names = [kernel.name for kernel in lowered(proto, AVX2).kernels]
    assert len(names) == 4
    assert names[1] == names[2]
    assert len(set(names)) == 3  # the first reads the model's input and the last writes its output: other layouts


def test_lowering_twice_gives_the_same_module() -> None:
    def names(result: Lowered) -> list[str]:
        return [kernel.name for kernel in result.kernels]

    first, second = lowered(residual(), AVX2), lowered(residual(), AVX2)
    assert names(first) == names(second)
    assert first.module.script() == second.module.script()


def test_llvm_knows_that_the_arguments_of_a_kernel_do_not_overlap() -> None:
    code = generated(tvm.compile(lowered(CASES["3x3"], AVX2).module, target_of(host())), "ll")
    kernels = re.findall(r"^define .*@\w+_compute_\(([^)]*\))", code, re.MULTILINE)
    assert kernels
    pointers = [argument for arguments in kernels for argument in arguments.split(",") if "ptr" in argument]
    assert pointers
    assert all("noalias" in pointer for pointer in pointers)


def test_packing_is_the_layout_it_tells_tvm() -> None:
    packing = Packing(((0, 8, 2), (1, 4, 3), (2, 1, 3), (1, 1, 4), (0, 1, 8)))
    array = np.arange(16 * 12 * 3).reshape(16, 12, 3)
    packed = packing.apply(array)
    assert packed.shape == (2, 3, 3, 4, 8)
    for o, i, k in ((0, 0, 0), (7, 3, 1), (8, 4, 2), (15, 11, 2)):
        assert packed[tuple(packing.index_map(o, i, k))] == array[o, i, k]


def test_a_graph_the_importer_refuses_is_named() -> None:
    proto = graph([helper.make_node("Det", ["x"], ["y"])], (1, 3, 4, 4), {}, {"y": 2})
    with pytest.raises(ModelImportError, match=r"TVM's ONNX importer failed on this model: .*Det"):
        import_onnx(proto, 1)
