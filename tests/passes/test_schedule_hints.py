"""A hint in the operator is a setting in the kernel that computes it, and nothing else changes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from compiling import lowered, outputs_of, random
from example_models import small_model

from gos_adapt.model.model import Replacement
from gos_adapt.model.sites import find_sites
from gos_adapt.model.splice import splice
from gos_adapt.operators.builder import Builder
from gos_adapt.operators.evaluate import evaluate
from gos_adapt.operators.graph import LAYERS, Node, OperatorGraph
from gos_adapt.operators.onnx_form import to_onnx
from tvm_passes.frontend import import_onnx
from tvm_passes.kernel_calls import kernel_calls
from tvm_passes.pipeline import fuse, schedule
from tvm_passes.schedules import Cpu, Variant, variants

if TYPE_CHECKING:
    from tvm_passes.compat import IRModule

CPU = Cpu(lanes=8, registers=16, threads=2)


def operator(*hints: tuple[str, dict[str, int]], kernel: tuple[int, int] = (3, 3)) -> OperatorGraph:
    """Two convolutions, the second one hinted at: its input is blocked, and has a bias and a relu after it."""
    b = Builder()
    first = b.apply("relu", b.bias(b.convolution(b.input(3, 8, 8), 16, (3, 3), padding=(1, 1, 1, 1))))
    pad = kernel[0] // 2
    x = b.convolution(first, 32, kernel, padding=(pad,) * 4)
    for name, hyper in hints:
        x = b.apply(name, x, **hyper)
    b.apply("relu", b.bias(x))
    graph = b.graph()
    assert isinstance(graph, OperatorGraph)
    return graph


def weights(graph: OperatorGraph) -> list[Any]:
    rng = np.random.default_rng(1)
    return [rng.normal(0, 0.2, shape).astype(np.float32) for shape in graph.weight_shapes]


def hinted_kernel(graph: OperatorGraph) -> tuple[str, list[Variant], str]:
    """The rule, the variants and the scheduled loops of the second convolution; its result is checked."""
    proto, values = to_onnx(graph, weights(graph)), weights(graph)
    fused = fuse(import_onnx(proto, 1), CPU)
    result = schedule(fused, CPU)
    x = np.random.default_rng(2).normal(size=(1, 3, 8, 8)).astype(np.float32)
    (actual,) = outputs_of(result, x)
    np.testing.assert_allclose(actual, evaluate(graph, [x], values), rtol=1e-4, atol=1e-4)
    offered = variants(kernel_calls(fused.module)[1].func, CPU)
    assert isinstance(offered, list)
    return result.kernels[1].rule, offered, loops_of(result.module, result.kernels[1].name)


def loops_of(module: IRModule, kernel: str) -> str:
    return str(module[kernel].script())


def test_the_kernel_of_a_hinted_node_has_the_tile_and_another_node_has_its_own() -> None:
    rule, offered, _ = hinted_kernel(operator(("tile", {"columns": 2})))
    assert rule == "tiled reduction"
    assert {variant.knobs.columns for variant in offered} == {2}
    _, free, _ = hinted_kernel(operator())
    assert {variant.rule for variant in free} > {"tiled reduction"}


def test_a_hinted_loop_is_written_out_as_often_as_the_hint_says() -> None:
    rule, offered, loops = hinted_kernel(operator(("unroll", {"steps": 4}), kernel=(1, 1)))
    assert rule == "tiled reduction"
    assert {variant.knobs.steps for variant in offered} == {4}
    _, _, plain = hinted_kernel(operator(kernel=(1, 1)))
    unrolled = re.compile(r"in T.unroll\((T.int64\()?4\)")
    assert len(unrolled.findall(loops)) == len(unrolled.findall(plain)) + 1


def test_two_hints_are_taken_together() -> None:
    _, offered, _ = hinted_kernel(operator(("tile", {"columns": 4}), ("unroll", {"steps": 2}), kernel=(1, 1)))
    assert {(variant.knobs.columns, variant.knobs.steps) for variant in offered} == {(4, 2)}


def test_neighbours_of_a_hinted_variant_keep_the_hint() -> None:
    graph = operator(("tile", {"columns": 4}), ("unroll", {"steps": 2}), kernel=(1, 1))
    fused = fuse(import_onnx(to_onnx(graph, weights(graph)), 1), CPU)
    func = kernel_calls(fused.module)[1].func
    first = variants(func, CPU)
    assert isinstance(first, list)
    near = variants(func, CPU, first[0])
    assert isinstance(near, list)
    assert near
    assert {(variant.knobs.columns, variant.knobs.steps) for variant in near} == {(4, 2)}


@pytest.mark.parametrize(("hint", "text"), [
    (("tile", {"columns": 7}), "hint columns=7 ignored"),
    (("unroll", {"steps": 5}), "hint steps=5 ignored"),
])  # fmt: skip
def test_a_hint_that_does_not_fit_is_ignored_and_the_rule_says_so(hint: tuple[str, dict[str, int]], text: str) -> None:
    rule, offered, _ = hinted_kernel(operator(hint))
    _, free, _ = hinted_kernel(operator())
    assert offered == free
    assert rule == f"{free[0].rule}, {text}"


def test_a_hinted_kernel_is_tuned_on_its_own() -> None:
    def keys(graph: OperatorGraph) -> tuple[str, ...]:
        return fuse(import_onnx(to_onnx(graph, weights(graph)), 1), CPU).keys

    (first, plain), (same, hinted) = keys(operator()), keys(operator(("tile", {"columns": 2})))
    assert first == same
    assert plain != hinted


def test_a_hint_survives_being_spliced_into_a_model() -> None:
    constants = [("w", random(4, 3, 3, 3)), ("v", random(4, 2)), ("b", random(2))]
    nodes = [
        ("Conv", "x w", "c", {"kernel_shape": [3, 3]}),
        ("GlobalAveragePool", "c", "p", {}),
        ("Flatten", "p", "f", {}),
        ("Gemm", "f v b", "y", {}),
    ]
    model = small_model(nodes, ("N", 3, 6, 6), ["y"], constants)
    replacements = []
    for site in find_sites(model):
        if site.name in ("c", "y"):
            (layer,) = (i for i, node in enumerate(site.operator.nodes) if node.op in LAYERS)
            nodes = [*site.operator.nodes[: layer + 1], Node("tile", (layer,), (("columns", 7),))]
            if site.name == "y":
                nodes += [Node("weight", shape=(2,)), Node("channel_bias", (layer + 1, layer + 2))]
            replacements.append(Replacement(site.name, OperatorGraph(tuple(nodes)), site.weights))
    kernels = lowered(splice(model, replacements).proto, CPU).kernels
    hinted = [kernel.tensors for kernel in kernels if kernel.rule.endswith("hint columns=7 ignored")]
    assert hinted == [("c",), ("y",)]
