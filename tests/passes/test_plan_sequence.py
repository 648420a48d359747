from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from compiling import Array, expected, graph, outputs_of, random
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from device_targets import host
from device_targets.session import TIMED
from tvm_passes.build import cpu_of, target_of
from tvm_passes.compat import bytes_of, relax, tvm
from tvm_passes.frontend import import_onnx
from tvm_passes.kernel_calls import kernel_calls, relax_functions
from tvm_passes.pipeline import fuse, schedule
from tvm_passes.plan_sequence import _plan
from tvm_passes.schedule_kernels import ScheduleKernels
from tvm_passes.schedules import Cpu

if TYPE_CHECKING:
    from tvm_passes.pipeline import Lowered

AVX2 = Cpu(lanes=8, registers=16, threads=2)
AROUND = [1, 1, 1, 1]
SHAPE = (1, 8, 8, 8)


def planned(proto: onnx.ModelProto, cpu: Cpu = AVX2, timed_repeats: int = 0) -> Lowered:
    return schedule(fuse(import_onnx(proto, 1), cpu), cpu, timed_repeats=timed_repeats)


def calls_of(result: Lowered, function: str = "main") -> list[Any]:
    """What a function of the compiled module binds, in order."""
    body = dict(relax_functions(result.module))[function].body
    return [binding.value for block in body.blocks for binding in block.bindings]


def check(proto: onnx.ModelProto, cpu: Cpu = AVX2) -> Lowered:
    """Check that ``main`` is a single call and computes what ONNX Runtime computes."""
    result = planned(proto, cpu)
    array = random(*(dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim), seed=9)
    got, wanted = outputs_of(result, array), expected(proto, array)
    assert len(got) == len(wanted)
    for mine, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())
    assert [call.op for call in calls_of(result) if isinstance(call, relax.Call)] == [tvm.ir.Op.get("relax.call_tir")]
    return result


def conv(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, f"w_{target}"], [target], kernel_shape=[3, 3], pads=AROUND)


def weights(*targets: str) -> dict[str, Array]:
    return {f"w_{target}": random(8, 8, 3, 3, seed=i) / 8 for i, target in enumerate(targets)}


RESIDUAL = graph(
    [
        conv("x", "a"),
        helper.make_node("Relu", ["a"], ["ra"]),
        conv("ra", "b"),
        helper.make_node("Add", ["b", "ra"], ["s"]),
        helper.make_node("Relu", ["s"], ["rs"]),
        conv("rs", "y"),
    ],
    SHAPE,
    weights("a", "b", "y"),
    {"y": 4},
)
CASES = {
    "a residual network": RESIDUAL,
    "a kernel of several results": graph(
        [
            conv("x", "a"),
            helper.make_node("Split", ["a"], ["l", "r"], axis=1),
            helper.make_node("Softmax", ["l"], ["sl"], axis=1),
            helper.make_node("MaxPool", ["r"], ["mr"], kernel_shape=[3, 3], pads=AROUND),
            helper.make_node("Concat", ["mr", "sl"], ["y"], axis=1),
        ],
        SHAPE,
        weights("a"),
        {"y": 4},
    ),
    "a result that nobody reads": graph(
        [conv("x", "a"), helper.make_node("Split", ["a"], ["l", "r"], axis=1), helper.make_node("Relu", ["r"], ["y"])],
        SHAPE,
        weights("a"),
        {"y": 4},
    ),
    "several results that are outputs": graph(
        [conv("x", "a"), helper.make_node("Split", ["a"], ["y", "z"], axis=1)], SHAPE, weights("a"), {"z": 4, "y": 4}
    ),
    "two outputs": graph(
        [conv("x", "a"), conv("a", "y"), conv("a", "z")], SHAPE, weights("a", "y", "z"), {"y": 4, "z": 4}
    ),
    "an output that is also used inside": graph(
        [conv("x", "y"), conv("y", "b"), conv("b", "z")], SHAPE, weights("y", "b", "z"), {"z": 4, "y": 4}
    ),
    "an input that is an output": graph(
        [conv("x", "a"), conv("a", "y"), helper.make_node("Identity", ["x"], ["z"])],
        SHAPE,
        weights("a", "y"),
        {"z": 4, "y": 4},
    ),
    "a constant that is an output": graph(
        [conv("x", "a"), conv("a", "y"), helper.make_node("Identity", ["w_y"], ["z"])],
        SHAPE,
        weights("a", "y"),
        {"y": 4, "z": 4},
    ),
    "one tensor as two outputs": graph(
        [conv("x", "a"), conv("a", "y"), helper.make_node("Identity", ["y"], ["z"])],
        SHAPE,
        weights("a", "y"),
        {"y": 4, "z": 4},
    ),
    "an input that is read at the end": graph(
        [conv("x", "a"), conv("a", "b"), helper.make_node("Add", ["b", "x"], ["y"])],
        SHAPE,
        weights("a", "b"),
        {"y": 4},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_planned_function_is_one_call_that_computes_what_onnx_runtime_computes(name: str) -> None:
    check(CASES[name])


def test_intermediates_below_a_kilobyte_are_aligned_as_vectors_need() -> None:
    layers = range(6)
    gemms = [helper.make_node("Gemm", [f"t{i}" if i else "x", f"w{i}", f"b{i}"], [f"g{i}"], transB=1) for i in layers]
    relus = [helper.make_node("Relu", [f"g{i}"], [f"t{i + 1}"]) for i in layers[:-1]]
    nodes = [node for pair in zip(gemms, [*relus, None], strict=True) for node in pair if node]
    stored = {f"w{i}": random(48, 48, seed=i) / 7 for i in layers} | {f"b{i}": random(48, seed=i) for i in layers}
    nodes[-1].output[0] = "y"
    result = check(graph(nodes, (1, 48), stored, {"y": 2}), cpu_of(host()))
    assert len(result.kernels) == len(layers)


def chain(skips: list[tuple[int, int, bool]]) -> onnx.ModelProto:
    """A chain of convolutions and poolings of changing width; each may add what an earlier one computed."""
    nodes, stored, tensors, widths = [], {}, ["x"], [8]
    for i, (width, back, pools) in enumerate(skips):
        name = f"t{i}"
        if pools:
            width = widths[-1]
            nodes.append(helper.make_node("MaxPool", [tensors[-1]], [f"{name}_c"], kernel_shape=[3, 3], pads=AROUND))
        else:
            nodes.append(helper.make_node("Conv", [tensors[-1], f"w{i}"], [f"{name}_c"], kernel_shape=[1, 1]))
            stored[f"w{i}"] = random(width, widths[-1], 1, 1, seed=i) / np.float32(np.sqrt(widths[-1]))
        same = [tensor for tensor, size in zip(tensors, widths, strict=True) if size == width]
        other = same[back % len(same)] if same else f"{name}_c"
        nodes.append(helper.make_node("Add", [f"{name}_c", other], [name]))
        tensors.append(name)
        widths.append(width)
    nodes.append(helper.make_node("Softmax", [tensors[-1]], ["y"], axis=1))
    return graph(nodes, (1, 8, 4, 4), stored, {"y": 4})


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from([8, 16, 24]), st.integers(0, 5), st.booleans()), min_size=2, max_size=7))
def test_no_two_tensors_that_live_at_once_share_a_slot(skips: list[tuple[int, int, bool]]) -> None:
    proto = chain(skips)
    module = ScheduleKernels(AVX2)(fuse(import_onnx(proto, 1), AVX2).module)
    plan = _plan("main", module["main"], module)
    assert plan is not None
    assert [kernel for kernel, _ in plan.calls] == [call.kernel for call in kernel_calls(module)]
    memory = plan.intermediates
    begin, end = memory.offsets, {tensor: at + bytes_of(tensor.type) for tensor, at in memory.offsets.items()}
    assert max(end.values()) <= memory.bytes
    assert all(at % 64 == 0 for at in begin.values())
    lives = {tensor: [i for i, (_, used) in enumerate(plan.calls) if tensor in used] for tensor in begin}
    for one in begin:
        for other in begin:
            if one != other and begin[one] < end[other] and begin[other] < end[one]:
                assert lives[one][-1] < lives[other][0] or lives[other][-1] < lives[one][0]
    check(proto)


def test_tensors_of_a_chain_share_memory() -> None:
    module = ScheduleKernels(AVX2)(fuse(import_onnx(chain([(16, 0, False)] * 6), 1), AVX2).module)
    plan = _plan("main", module["main"], module)
    assert plan is not None
    separately = sum(bytes_of(tensor.type) for tensor in plan.intermediates.offsets)
    assert plan.intermediates.bytes <= separately / 2


def test_a_function_that_calls_no_kernel_stays_as_it_is_and_runs() -> None:
    proto = graph([helper.make_node("Identity", ["x"], ["y"])], SHAPE, {}, {"y": 4})
    result, array = planned(proto, timed_repeats=2), random(*SHAPE)
    assert {name for name, _ in relax_functions(result.module)} == {"main"}
    np.testing.assert_array_equal(outputs_of(result, array), [array])


@pytest.mark.parametrize("name", ["a residual network", "an input that is an output", "one tensor as two outputs"])
def test_the_timed_sister_computes_the_same_and_says_when_each_kernel_ended(name: str) -> None:
    repeats, proto = 3, CASES[name]
    result, array = planned(proto, timed_repeats=repeats), random(*SHAPE)
    machine = relax.VirtualMachine(tvm.compile(result.module, target_of(host())), tvm.cpu())
    *outputs, stamps = (value.numpy() for value in machine["main" + TIMED](tvm.runtime.tensor(array)))
    for got, wanted in zip(outputs, expected(proto, array), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    assert stamps.dtype == np.int64
    assert stamps.shape == (repeats, len(result.kernels) + 1)
    assert (np.diff(stamps.reshape(-1)) >= 0).all()
    assert stamps.reshape(-1)[-1] > stamps.reshape(-1)[0] > 0


def test_without_repeats_there_is_no_timed_sister() -> None:
    assert [name for name, _ in relax_functions(planned(RESIDUAL).module)] == ["main"]
