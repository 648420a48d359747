"""Kernel schedules for CPUs: a visible list of rules; the first that does not decline is the default of a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gos_adapt.errors import Rejection, last_line
from tvm_passes.compat import ScheduleError
from tvm_passes.schedules.cpu import Cpu
from tvm_passes.schedules.elementwise import ELEMENTWISE
from tvm_passes.schedules.kernel import Fused, Packing, Scheduled, Storage
from tvm_passes.schedules.metaschedule import METASCHEDULE
from tvm_passes.schedules.rows import ROWS
from tvm_passes.schedules.rule import Rule, Variant
from tvm_passes.schedules.tiled_reduction import TILED_REDUCTION
from tvm_passes.schedules.winograd import WINOGRAD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvm_passes.compat import PrimFunc

__all__ = ["RULES", "Cpu", "Packing", "Scheduled", "Storage", "Variant", "ignored", "schedule_kernel", "variants"]

TEMPLATES = (ELEMENTWISE, TILED_REDUCTION, WINOGRAD)
"""What they take is known well enough that nothing needs to be drawn at random."""
RULES: dict[str, Rule] = {rule.name: rule for rule in (*TEMPLATES, ROWS, METASCHEDULE)}


def variants(func: PrimFunc, cpu: Cpu, best: Variant | None = None) -> list[Variant] | Rejection:
    """Return the ways to schedule a kernel that are worth measuring on `cpu`, the best guess first.

    Args:
        func: The unscheduled kernel.
        cpu: What to schedule for.
        best: The fastest variant measured so far; then its neighbours are returned, perhaps none.

    Returns:
        Variants, or why no rule takes the kernel. A hint (`Fused.hints`) leaves only those that take it, if any do.
    """
    kernel = Fused(func)
    if reason := kernel.opaque:
        return Rejection(reason)
    found: list[Variant] = []
    reasons = []
    for rule in RULES.values() if kernel.plain else (ROWS, METASCHEDULE):
        if best is not None and best.rule != rule.name:
            continue
        if rule is METASCHEDULE and any(RULES[variant.rule] in TEMPLATES for variant in found):
            continue
        try:
            settings = rule.settings(Fused(func), cpu, best.knobs if best else None)
        except ScheduleError as error:
            settings = _refused(error)
        if isinstance(settings, Rejection):
            reasons.append(f"{rule.name}: {settings.reason}")
            continue
        mine = [Variant(rule.name, knobs) for knobs in settings]
        leads = bool(settings) and best is None and rule.leads(Fused(func), settings[0])
        found = mine + found if leads else found + mine
    return as_hinted(found, kernel.hints) if found or best else Rejection("; ".join(reasons))


def as_hinted(found: list[Variant], hints: Mapping[str, int]) -> list[Variant]:
    """Keep the variants that take each hint (knob -> value) which any of them can take."""
    for hint in hints.items():
        found = [variant for variant in found if not ignored(variant, dict([hint]))] or found
    return found


def ignored(variant: Variant, hints: Mapping[str, int]) -> dict[str, int]:
    """Return the hints that a variant does not take: they are for the one rule whose knobs they name."""
    mine = variant.rule == TILED_REDUCTION.name
    return {knob: value for knob, value in hints.items() if not mine or getattr(variant.knobs, knob, None) != value}


def schedule_kernel(func: PrimFunc, cpu: Cpu, packable: frozenset[int], variant: Variant) -> Scheduled | Rejection:
    """Schedule one fused kernel for `cpu`.

    Args:
        func: The unscheduled kernel.
        cpu: What to schedule for.
        packable: Indices of the parameters that are constants; a rule may ask for another storage order of these.
        variant: How.

    Returns:
        The scheduled kernel, or why this variant does not fit it.
    """
    try:
        return RULES[variant.rule].schedule(Fused(func), cpu, packable, variant.knobs)
    except ScheduleError as error:
        return _refused(error)


def _refused(error: ScheduleError) -> Rejection:
    return Rejection(f"a primitive refused: {last_line(error)}")
