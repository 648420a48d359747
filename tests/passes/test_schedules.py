from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from compiling import Array, expected, graph, random
from onnx import helper

from device_targets import host
from gos_adapt.errors import Rejection
from tvm_passes.build import target_of
from tvm_passes.compat import IRModule, tvm
from tvm_passes.frontend import import_onnx
from tvm_passes.kernel_calls import kernel_calls
from tvm_passes.pipeline import fuse, schedule
from tvm_passes.schedule_kernels import kernel_key
from tvm_passes.schedules import RULES, Cpu, Scheduled, Variant, schedule_kernel, variants

if TYPE_CHECKING:
    from tvm_passes.kernel_calls import KernelCall

ROOT = Path(__file__).parents[2]
CPU = Cpu(lanes=8, registers=16, threads=2, serial_below=1000)  # small kernels are shared among the threads too
FEW = 4
"""Settings of one rule that are run of each list of them: the first, the last, and some between."""


def conv(channels: tuple[int, int], window: int, size: int = 6, **attributes: Any) -> onnx.ModelProto:
    """A convolution with bias, residual and activation."""
    inputs, outputs = channels
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[window, window], **attributes),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    stored = {
        "w": random(outputs, inputs // attributes.get("group", 1), window, window) / window,
        "b": random(outputs, seed=1),
    }
    return graph(nodes, (1, inputs, size, size), stored, {"y": 4})


def single(operator: str, shape: tuple[int, ...] = (1, 16, 6, 6), **attributes: Any) -> onnx.ModelProto:
    return graph([helper.make_node(operator, ["x"], ["y"], **attributes)], shape, {}, {"y": len(shape)})


AROUND = [1, 1, 1, 1]
CASES = {
    "3x3": conv((8, 16), 3, pads=AROUND),
    "3x3 stride 2": conv((8, 16), 3, pads=AROUND, strides=[2, 2], size=8),
    "1x1": conv((16, 32), 1),
    "depthwise 3x3": conv((16, 16), 3, pads=AROUND, group=16),
    "7x7 stem of 3 channels": conv((3, 16), 7, pads=[3, 3, 3, 3], strides=[2, 2], size=12),
    "matmul": graph([helper.make_node("MatMul", ["x", "w"], ["y"])], (4, 24), {"w": random(24, 32)}, {"y": 2}),
    "global mean": single("GlobalAveragePool"),
    "max pool": single("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=AROUND),
    "softmax": single("Softmax", axis=1),
    "add": graph([helper.make_node("Add", ["x", "b"], ["y"])], (1, 16, 6, 6), {"b": random(16, 6, 6)}, {"y": 4}),
}


def prepared(proto: onnx.ModelProto) -> tuple[IRModule, KernelCall]:
    """The fused module of a model of one kernel, and that kernel."""
    module = fuse(import_onnx(proto, 1), CPU).module
    (call,) = kernel_calls(module)
    return module, call


def offered(call: KernelCall) -> list[Variant]:
    """A few variants of every rule, and a few neighbours of each rule's first."""
    first = variants(call.func, CPU)
    assert not isinstance(first, Rejection)
    found: dict[Variant, None] = {}
    for rule in dict.fromkeys(variant.rule for variant in first):
        mine = [variant for variant in first if variant.rule == rule]
        near = variants(call.func, CPU, mine[0])
        assert not isinstance(near, Rejection)
        assert mine[0] not in near
        for some in (mine, near):
            found |= dict.fromkeys(some[:: max(1, len(some) // FEW)])
    return list(found)


def stored_constants(call: KernelCall, scheduled: Scheduled) -> list[Array]:
    """The kernel's constant operands, as it reads them."""
    arrays = {i: call.args[i].value.numpy() for i in sorted(call.constants)}
    return [scheduled.constants[i].apply(a) if i in scheduled.constants else a for i, a in arrays.items()]


@pytest.mark.parametrize("name", CASES)
def test_every_variant_computes_what_onnx_runtime_computes(name: str) -> None:
    proto = CASES[name]
    _, call = prepared(proto)
    array = random(*(dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim), seed=9)
    (wanted,) = expected(proto, array)
    functions, results = {}, {}
    for i, variant in enumerate(offered(call)):
        scheduled = schedule_kernel(call.func, CPU, call.constants, variant)
        if isinstance(scheduled, Rejection):  # a variant may not fit; which fits only applying it tells
            continue
        results[f"variant_{i}"] = variant, stored_constants(call, scheduled)
        functions[f"variant_{i}"] = scheduled.func.with_attr("global_symbol", f"variant_{i}")
    assert len(functions) >= 2
    built = tvm.compile(IRModule(functions), target_of(host())).jit()
    for kernel, (variant, constants) in results.items():
        operands, waiting = [], iter(constants)
        for i in range(len(call.args)):
            operands.append(next(waiting) if i in call.constants else array)
        result = tvm.runtime.tensor(np.full(wanted.shape, np.nan, np.float32))
        built[kernel](*map(tvm.runtime.tensor, operands), result)
        atol = 1e-4 * np.abs(wanted).max()
        np.testing.assert_allclose(result.numpy(), wanted, rtol=0, atol=atol, err_msg=variant.to_text())


def test_the_choice_decides_the_variant_and_the_guess_where_there_is_none() -> None:
    module, call = prepared(CASES["3x3"])
    guessed = variants(call.func, CPU)
    assert not isinstance(guessed, Rejection)
    asked: list[str] = []

    def choose(key: str) -> Variant:
        asked.append(key)
        return next(variant for variant in reversed(guessed) if variant.rule == "tiled reduction")

    fused = fuse(import_onnx(CASES["3x3"], 1), CPU)
    chosen, default = schedule(fused, CPU, choose), schedule(fused, CPU)
    assert asked == list(fused.kernels) == [kernel_key(call.func, call.constants)]
    assert [kernel.rule for kernel in default.kernels] == [guessed[0].rule]
    assert [kernel.rule for kernel in chosen.kernels] == ["tiled reduction"]
    assert chosen.module.script() != default.module.script()
    assert module.script() == fused.module.script()


def test_a_choice_that_does_not_fit_the_kernel_leaves_it_to_the_guess() -> None:
    fused = fuse(import_onnx(CASES["3x3"], 1), CPU)
    elementwise = Variant("elementwise", RULES["elementwise"].knobs(8, 1))
    asked: list[str] = []

    def choose(key: str) -> Variant:
        asked.append(key)
        return elementwise

    (kernel,) = schedule(fused, CPU, choose).kernels
    assert asked
    assert kernel.rule != "elementwise"
    assert not kernel.rule.startswith("none")


@pytest.mark.parametrize("name", CASES)
def test_the_text_of_a_variant_is_read_back(name: str) -> None:
    _, call = prepared(CASES[name])
    for variant in offered(call):
        assert Variant.parse(variant.to_text(), RULES) == variant


TILING = asdict(RULES["tiled reduction"].knobs(8, 1, 1, 4, 1, "rows"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "null",
        "7",
        "[]",
        "{}",
        "[" * 200_000,
        json.dumps({"rule": "no such rule"}),
        json.dumps({"rule": ["rows"], "parallel_from": 0}),
        json.dumps({"rule": {}, "parallel_from": 0}),
        json.dumps({"rule": "rows"}),
        json.dumps({"rule": "rows", "parallel_from": 0, "more": 1}),
        json.dumps({"rule": "rows", "parallel_from": None}),
        json.dumps({"rule": "rows", "parallel_from": "0"}),
        json.dumps({"rule": "rows", "parallel_from": True}),
        json.dumps({"rule": "rows", "parallel_from": 1.5}),
        json.dumps({"rule": "rows", "parallel_from": [0]}),
        json.dumps({"rule": "tiled reduction"} | TILING | {"split": "sideways"}),
        json.dumps({"rule": "tiled reduction"} | TILING | {"split": []}),
        json.dumps({"rule": "tiled reduction"} | TILING | {"lanes": "eight"}),
    ],
)
def test_text_that_no_variant_wrote_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a schedule of these rules|Expecting value"):
        Variant.parse(text, RULES)


def key_of(proto: onnx.ModelProto) -> str:
    _, call = prepared(proto)
    return kernel_key(call.func, call.constants)


def renamed(proto: onnx.ModelProto) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    names = {name: f"other_{name}" for name in ("w", "b", "c", "y")}
    for node in other.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*other.graph.initializer, *other.graph.output, *other.graph.value_info):
        value.name = names.get(value.name, value.name)
    return other


def test_the_key_of_a_kernel_ignores_names() -> None:
    proto = CASES["3x3"]
    assert key_of(renamed(proto)) == key_of(proto)
    _, call = prepared(proto)
    named = call.func.with_attr("global_symbol", "some_name")
    assert kernel_key(named, call.constants) == kernel_key(call.func, call.constants)


def test_the_key_of_a_kernel_ignores_the_values_of_its_weights() -> None:
    proto, other = CASES["3x3"], onnx.ModelProto()
    other.CopyFrom(proto)
    (weights,) = (value for value in other.graph.initializer if value.name == "w")
    weights.raw_data = (random(16, 8, 3, 3, seed=7)).tobytes()
    assert key_of(other) == key_of(proto)


def test_the_key_of_a_kernel_sees_shapes_attributes_and_which_operands_are_constant() -> None:
    protos = [
        CASES["3x3"],
        CASES["3x3 stride 2"],
        conv((8, 16), 3, pads=AROUND, size=8),
        conv((8, 8), 3, pads=AROUND),
        conv((8, 16), 3, pads=[0, 0, 2, 2]),
    ]
    assert len({key_of(proto) for proto in protos}) == len(protos)
    _, call = prepared(CASES["3x3"])
    assert kernel_key(call.func, frozenset()) != kernel_key(call.func, call.constants)


def test_another_process_finds_the_same_key() -> None:
    script = (
        "import sys, onnx\n"
        "from tvm_passes.frontend import import_onnx\n"
        "from tvm_passes.pipeline import fuse\n"
        "from tvm_passes.schedules import Cpu\n"
        "proto = onnx.ModelProto.FromString(sys.stdin.buffer.read())\n"
        "print(*fuse(import_onnx(proto, 1), Cpu(lanes=8, registers=16, threads=2)).kernels)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        input=CASES["3x3"].SerializeToString(),
        capture_output=True,
        cwd=ROOT,
        check=True,
    )
    assert result.stdout.decode().split() == [key_of(CASES["3x3"])]


def test_settings_are_best_guess_first_without_repetition() -> None:
    for proto in CASES.values():
        _, call = prepared(proto)
        found = variants(call.func, CPU)
        assert not isinstance(found, Rejection)
        assert len(set(found)) == len(found)
        (kernel,) = schedule(fuse(import_onnx(proto, 1), CPU), CPU).kernels
        assert kernel.rule == found[0].rule
