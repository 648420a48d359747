"""Kernels of several reductions over rows, such as softmax and layer normalisation: threads take rows."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from gos_adapt.errors import Rejection
from tvm_passes.compat import reduces
from tvm_passes.schedules.kernel import Fused, Scheduled

if TYPE_CHECKING:
    from tvm_passes.schedules.cpu import Cpu


def schedule_rows(kernel: Fused, cpu: Cpu, _packable: frozenset[int] = frozenset()) -> Scheduled | Rejection:
    """Keep every block, one after the other; share the outermost axis of the large ones among the threads."""
    schedule = kernel.schedule
    if not kernel.blocks:
        return Rejection("has no blocks")
    for block in kernel.blocks:
        loops = list(schedule.get_loops(block))
        is_reduction = block in kernel.reductions
        extents = kernel.axis_extents(block)
        if not loops or prod(extents) < cpu.serial_below:
            continue
        if is_reduction:
            wide = next((i for i, loop in enumerate(loops) if int(schedule.get(loop).extent) > 1), 0)
            if not reduces(schedule.get(block).iter_vars[wide]):
                schedule.parallel(loops[wide])
        else:
            schedule.parallel(schedule.fuse(*loops))
    return Scheduled(kernel.func, "rows")
