"""Kernels of several passes, such as softmax, layer normalisation and splitting: threads take rows of each."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from tvm_passes.compat import reduces
from tvm_passes.schedules.kernel import Fused, Scheduled
from tvm_passes.schedules.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvm_passes.schedules.cpu import Cpu


@dataclass(frozen=True)
class Rows:
    """The knob of a sequence of passes.

    Attributes:
        parallel_from: Steps from which a pass is shared among the threads; 0 for never.
    """

    parallel_from: int


def _settings(_kernel: Fused, cpu: Cpu, best: Rows | None) -> Sequence[Rows]:
    if best is not None:
        return []
    return [Rows(cpu.serial_below), Rows(0)] if cpu.threads > 1 else [Rows(0)]


def _schedule(kernel: Fused, _cpu: Cpu, _packable: frozenset[int], knobs: Rows) -> Scheduled:
    """Keep every block, one after the other; share the outermost axis of the large ones among the threads."""
    schedule = kernel.schedule
    for block in kernel.blocks:
        loops = list(schedule.get_loops(block))
        if not loops or not knobs.parallel_from or prod(kernel.axis_extents(block)) < knobs.parallel_from:
            continue
        if block in kernel.reductions:
            wide = next((i for i, loop in enumerate(loops) if int(schedule.get(loop).extent) > 1), 0)
            if not reduces(schedule.get(block).iter_vars[wide]):
                schedule.parallel(loops[wide])
        else:
            schedule.parallel(schedule.fuse(*loops))
    return Scheduled(kernel.func)


ROWS = Rule("rows", Rows, _settings, _schedule)
