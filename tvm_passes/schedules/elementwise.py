"""Element-wise kernels and data movement: one pass over the output, in memory order, vectorised."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from gos_adapt.errors import Rejection
from tvm_passes.schedules.kernel import Fused, Scheduled
from tvm_passes.schedules.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvm_passes.schedules.cpu import Cpu


@dataclass(frozen=True)
class Pass:
    """The knobs of one pass over the output.

    Attributes:
        lanes: Elements of one vector; 1 for scalar code.
        tasks: Pieces handed to threads; 1 for none.
    """

    lanes: int
    tasks: int


def _settings(kernel: Fused, cpu: Cpu, best: Pass | None) -> Sequence[Pass] | Rejection:
    if kernel.reductions:
        return Rejection("reduces")
    if len({kernel.schedule.get(block).writes[0].source for block in kernel.blocks}) != len(kernel.blocks):
        return Rejection("writes a buffer twice")
    if best is not None:
        return []
    elements = prod(kernel.axis_extents(kernel.blocks[-1]))
    lanes = cpu.lanes if elements >= 2 * cpu.lanes and elements % cpu.lanes == 0 else 1
    parallel = elements // lanes >= cpu.threads > 1
    serial, shared = Pass(lanes, 1), Pass(lanes, cpu.threads)
    if not parallel:
        return [serial]
    return [shared, serial] if elements >= cpu.serial_below else [serial, shared]


def _schedule(kernel: Fused, _cpu: Cpu, _packable: frozenset[int], knobs: Pass) -> Scheduled | Rejection:
    """Inline everything into the last block and walk its output once, in the order it is stored."""
    schedule, blocks = kernel.schedule, kernel.blocks
    for block in blocks[:-1]:
        schedule.compute_inline(block)
    last = blocks[-1]
    loops = list(schedule.get_loops(last))
    if not loops:
        return Scheduled(kernel.func)
    blocked = kernel.blocked_axis(last)
    if blocked is not None:
        outer, lane = schedule.split(loops[blocked], [None, kernel.written(last)[-1]])
        loops[blocked] = outer
        loops.append(lane)
        schedule.reorder(*loops)
    flat = schedule.fuse(*loops)
    if knobs.lanes > 1:
        flat, lane = schedule.split(flat, [None, knobs.lanes])
        schedule.vectorize(lane)
    if knobs.tasks > 1:
        schedule.parallel(flat)
    return Scheduled(kernel.func)


ELEMENTWISE = Rule("elementwise", Pass, _settings, _schedule)
