from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from compiling import Array, expected, outputs_of, random
from onnx import TensorProto, helper, numpy_helper

from gos_adapt.errors import Rejection
from tvm_passes.compat import Schedule, blocks_of, structural_hash
from tvm_passes.frontend import import_onnx
from tvm_passes.pipeline import fuse, schedule
from tvm_passes.schedules import RULES, Cpu, Scheduled, Variant, schedule_kernel, variants
from tvm_passes.schedules.metaschedule import DRAWS, METASCHEDULE, Draw

ROOT = Path(__file__).parents[2]
CPU = Cpu(lanes=8, registers=16, threads=2)


def model(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...], dtype: int = TensorProto.FLOAT, **stored: Array
) -> onnx.ModelProto:
    """A model that computes the outputs of its last node from ``x``."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, dtype, None) for name in nodes[-1].output],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(proto)


def operator(name: str, *others: str, outputs: tuple[str, ...] = ("y",), **attributes: Any) -> list[onnx.NodeProto]:
    return [helper.make_node(name, ["x", *others], list(outputs), **attributes)]


ARG_MAX = model(operator("ArgMax", axis=1, keepdims=0), (1, 21, 8, 8), TensorProto.INT64)
SOFTMAX = model(operator("Softmax", axis=-1), (4, 24, 40))
LAYER_NORM = model(operator("LayerNormalization", "s", "b", axis=-1), (1, 12, 48), s=random(48), b=random(48, seed=1))
INSTANCE_NORM = model(operator("InstanceNormalization", "s", "b"), (1, 16, 6, 6), s=random(16), b=random(16, seed=1))
SPLIT = model(operator("Split", outputs=("y", "z"), axis=1), (1, 16, 6, 6))
SCATTER = model(operator("ScatterND", "i", "u"), (8, 6), i=np.array([[1], [4]]), u=random(2, 6))
SCATTER_ELEMENTS = model(operator("ScatterElements", "i", "u", axis=1), (2, 6), i=np.array([[1], [4]]), u=random(2, 1))
AVERAGE_POOL = model(operator("AveragePool", kernel_shape=[4, 4], strides=[4, 4]), (1, 16, 8, 8))


def kernels(proto: onnx.ModelProto) -> list[Any]:
    return list(fuse(import_onnx(proto, 1), CPU).kernels.values())


def offered(func: Any, best: Variant | None = None) -> list[str]:
    found = variants(func, CPU, best)
    assert not isinstance(found, Rejection)
    return [variant.rule for variant in found]


def check(proto: onnx.ModelProto, variant: Variant | None, rules: list[str]) -> None:
    """Check the rules that took the kernels, and the outputs against ONNX Runtime."""
    lowered = schedule(fuse(import_onnx(proto, 1), CPU), CPU, lambda _: variant)
    assert [kernel.rule for kernel in lowered.kernels] == rules
    shape = [size.dim_value for size in proto.graph.input[0].type.tensor_type.shape.dim]
    array = random(*shape, seed=9)
    for got, wanted in zip(outputs_of(lowered, array), expected(proto, array), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("seed", range(1, DRAWS + 1))
@pytest.mark.parametrize("proto", [ARG_MAX, SOFTMAX, LAYER_NORM], ids=["argmax", "softmax", "layer norm"])
def test_every_draw_computes_what_onnx_runtime_computes(proto: onnx.ModelProto, seed: int) -> None:
    check(proto, Variant("metaschedule", Draw(seed)), ["metaschedule"] * len(kernels(proto)))


def test_nothing_is_printed_for_a_block_that_names_a_rule_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    ((func, constants),) = kernels(AVERAGE_POOL)
    schedule = Schedule(func)
    assert any("schedule_rule" in schedule.get(block).annotations for block in blocks_of(schedule))
    assert isinstance(schedule_kernel(func, CPU, constants, Variant("metaschedule", Draw(1))), Scheduled)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "proto", [ARG_MAX, SOFTMAX, INSTANCE_NORM, SPLIT], ids=["argmax", "softmax", "instance norm", "split"]
)
def test_without_measurements_nothing_is_drawn(proto: onnx.ModelProto) -> None:
    check(proto, None, ["rows"] * len(kernels(proto)))


def test_draws_compete_with_tvms_own_order_where_no_template_takes_a_kernel() -> None:
    for proto in (ARG_MAX, SOFTMAX, LAYER_NORM, INSTANCE_NORM):
        for func, _ in kernels(proto):
            assert offered(func) == ["rows"] * 2 + ["metaschedule"] * DRAWS
            assert offered(func, Variant("metaschedule", Draw(3))) == []


def test_nothing_is_drawn_for_a_kernel_that_a_template_takes_or_that_only_moves() -> None:
    relu, pool = model(operator("Relu"), (1, 16, 6, 6)), model(operator("MaxPool", kernel_shape=[2, 2]), (1, 16, 6, 6))
    for proto in (relu, pool, SPLIT):
        for func, _ in kernels(proto):
            assert "metaschedule" not in offered(func)


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (SCATTER, "its block scatter_nd_generic does not say what it writes"),
        (SCATTER_ELEMENTS, "has no blocks"),
    ],
    ids=["scatter nd", "scatter elements"],
)
def test_a_kernel_that_does_not_say_what_it_touches_is_left_as_it_is(proto: onnx.ModelProto, reason: str) -> None:
    ((func, _),) = kernels(proto)
    assert variants(func, CPU) == Rejection(reason)
    check(proto, None, [f"none: {reason}"])
    check(proto, Variant("metaschedule", Draw(1)), [f"none: {reason}"])


def test_what_does_not_say_what_it_touches_keeps_the_layout_of_its_feature_maps() -> None:
    nodes = [
        helper.make_node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2]),
        helper.make_node("ScatterElements", ["p", "i", "u"], ["s"], axis=1),
        helper.make_node("MaxPool", ["s"], ["y"], kernel_shape=[2, 2]),
    ]
    between = model(nodes, (1, 16, 8, 8), i=np.full((1, 1, 1, 1), 3), u=random(1, 1, 1, 1))
    check(between, None, ["tiled reduction", "none: has no blocks", "tiled reduction"])


def drawn(seed: int) -> int:
    ((func, constants),) = kernels(SOFTMAX)
    result = schedule_kernel(func, CPU, constants, Variant("metaschedule", Draw(seed)))
    assert isinstance(result, Scheduled)
    return int(structural_hash(result.func))


def test_a_seed_is_one_schedule_in_every_process_and_another_seed_another_one() -> None:
    script = "from test_metaschedule import drawn; print(drawn(5))"
    folders = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "passes")]
    code = f"import sys; sys.path[:0] = {folders!r}; {script}"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(elsewhere.stdout.split()[-1]) == drawn(5) == drawn(5)
    assert len({drawn(seed) for seed in range(1, DRAWS + 1)}) > DRAWS // 2


def test_drawing_does_not_read_the_tensor_intrinsics_which_takes_half_a_minute() -> None:
    drawn(1)
    assert "tvm.s_tir.tensor_intrin" not in sys.modules


def test_a_draw_is_recorded_as_its_seed() -> None:
    variant = Variant("metaschedule", Draw(7))
    assert variant.to_text() == '{"rule": "metaschedule", "seed": 7}'
    assert Variant.parse(variant.to_text(), RULES) == variant


@pytest.mark.parametrize("seed", ['"7"', "1.5", "true", "null", "[1]", '{"trace": []}', "\"__import__('os')\""])
def test_a_record_whose_seed_is_no_whole_number_is_refused(seed: str) -> None:
    with pytest.raises(ValueError, match="not a schedule of these rules"):
        Variant.parse(f'{{"rule": "metaschedule", "seed": {seed}}}', RULES)


@pytest.mark.parametrize("seed", [0, -1, 2**31, 10**30])
def test_a_seed_out_of_range_is_declined_with_a_reason(seed: int) -> None:
    ((func, constants),) = kernels(SOFTMAX)
    declined = schedule_kernel(func, CPU, constants, Variant(METASCHEDULE.name, Draw(seed)))
    assert declined == Rejection(f"a seed is 1 to 2147483647, got {seed}")
