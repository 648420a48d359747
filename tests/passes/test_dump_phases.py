from __future__ import annotations

from typing import TYPE_CHECKING

from compiling import graph, random
from onnx import helper

from tvm_passes.dump_phases import dump_phases
from tvm_passes.frontend import import_onnx
from tvm_passes.pipeline import fuse, schedule
from tvm_passes.schedules import Cpu

if TYPE_CHECKING:
    from pathlib import Path

CPU = Cpu(lanes=8, registers=16, threads=2)
MODEL = graph(
    [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Conv", ["c", "w"], ["y"])],
    (1, 8, 4, 4),
    {"w": random(8, 8, 1, 1)},
    {"y": 4},
)


def test_each_phase_leaves_what_it_made_as_text_and_changes_nothing(tmp_path: Path) -> None:
    with dump_phases(tmp_path):
        fused = fuse(import_onnx(MODEL, 1), CPU)
        lowered = schedule(fused, CPU)
    texts = {file.name: file.read_text() for file in tmp_path.iterdir()}
    phases = ["0-canonical", "1-fused", "2-laid-out", "3-scheduled", "4-planned"]
    assert sorted(texts) == [f"{phase}.py" for phase in phases]
    assert texts["2-laid-out.py"] == fused.module.script()
    assert texts["4-planned.py"] == lowered.module.script()
    assert len(set(texts.values())) == len(phases)
    assert lowered.module.script() == schedule(fuse(import_onnx(MODEL, 1), CPU), CPU).module.script()


def test_outside_the_context_nothing_is_written(tmp_path: Path) -> None:
    with dump_phases(tmp_path):
        pass
    schedule(fuse(import_onnx(MODEL, 1), CPU), CPU)
    assert list(tmp_path.iterdir()) == []
