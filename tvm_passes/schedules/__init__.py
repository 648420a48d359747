"""Kernel schedules for CPUs: a visible list of rules; the first that does not decline takes the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gos_adapt.errors import Rejection, last_line
from tvm_passes.compat import ScheduleError
from tvm_passes.schedules.cpu import Cpu
from tvm_passes.schedules.elementwise import schedule_elementwise
from tvm_passes.schedules.kernel import Fused, Packing, Scheduled
from tvm_passes.schedules.rows import schedule_rows
from tvm_passes.schedules.tiled_reduction import schedule_tiled_reduction

if TYPE_CHECKING:
    from tvm_passes.compat import PrimFunc

__all__ = ["RULES", "Cpu", "Packing", "Scheduled", "schedule_kernel"]

Rule = Callable[[Fused, Cpu, frozenset[int]], Scheduled | Rejection]

RULES: tuple[Rule, ...] = (schedule_elementwise, schedule_tiled_reduction, schedule_rows)


def schedule_kernel(func: PrimFunc, cpu: Cpu, packable: frozenset[int]) -> Scheduled:
    """Schedule one fused kernel for `cpu`.

    Args:
        func: The unscheduled kernel.
        cpu: What to schedule for.
        packable: Indices of the parameters that are constants; a rule may ask for another storage order of these.

    Returns:
        The scheduled kernel; `rule` is ``"none: <reasons>"`` when every rule declined and TVM's order is kept.
    """
    reasons = []
    for rule in RULES:
        kernel = Fused(func)
        if kernel.results > 1:
            return Scheduled(func, f"none: writes {kernel.results} results")
        try:
            result = rule(kernel, cpu, packable)
        except ScheduleError as error:
            result = Rejection(f"a primitive refused: {last_line(error)}")
        if isinstance(result, Scheduled):
            return result
        reasons.append(result.reason)
    return Scheduled(func, f"none: {'; '.join(reasons)}")
