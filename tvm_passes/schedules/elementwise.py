"""Element-wise kernels and data movement: one pass over the output, in memory order, vectorised."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from gos_adapt.errors import Rejection
from tvm_passes.schedules.kernel import Fused, Scheduled

if TYPE_CHECKING:
    from tvm_passes.schedules.cpu import Cpu


def schedule_elementwise(kernel: Fused, cpu: Cpu, _packable: frozenset[int] = frozenset()) -> Scheduled | Rejection:
    """Inline everything into the last block and walk its output once, in the order it is stored."""
    if kernel.reductions:
        return Rejection("reduces")
    schedule, blocks = kernel.schedule, kernel.blocks
    if len({schedule.get(block).writes[0].source for block in blocks}) != len(blocks):
        return Rejection("writes a buffer twice")
    for block in blocks[:-1]:
        schedule.compute_inline(block)
    last = blocks[-1]
    loops = list(schedule.get_loops(last))
    if not loops:
        return Scheduled(kernel.func, "elementwise")
    blocked = kernel.blocked_axis(last)
    if blocked is not None:
        outer, lane = schedule.split(loops[blocked], [None, kernel.written(last)[-1]])
        loops[blocked] = outer
        loops.append(lane)
        schedule.reorder(*loops)
    elements = prod(kernel.axis_extents(last))
    flat = schedule.fuse(*loops)
    if elements >= 2 * cpu.lanes and elements % cpu.lanes == 0:
        flat, lane = schedule.split(flat, [None, cpu.lanes])
        schedule.vectorize(lane)
    if elements >= cpu.serial_below:
        schedule.parallel(flat)
    return Scheduled(kernel.func, "elementwise")
