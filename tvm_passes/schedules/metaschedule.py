"""Kernels without a template of their own: MetaSchedule draws schedules at random, and measuring chooses.

MetaSchedule (Shao et al., NeurIPS 2022, arXiv:2205.13603) describes many schedules of a kernel by a few programs with
random decisions: tile sizes, where blocks are computed, how far loops are unrolled. Only this part of it is used. Its
one knob is the seed of those decisions, so a draw is built, timed and remembered like any setting of any rule, and the
same seed gives the same schedule with the same version of TVM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gos_adapt.errors import Rejection
from tvm_passes.compat import PostOrderApply, Schedule, Target, Trace, tune_context
from tvm_passes.schedules.kernel import ENTRY, Fused, Scheduled
from tvm_passes.schedules.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvm_passes.schedules.cpu import Cpu

DRAWS = 16
"""As many trials as one library holds."""
_LAST_SEED = 2**31 - 1
_RULE = "schedule_rule"
"""Annotation of blocks that are to have a rule of their own, as TVM's average pooling. For CPUs none is registered, and
MetaSchedule warns before it takes the common ones."""


@dataclass(frozen=True)
class Draw:
    """The knob of a random schedule.

    Attributes:
        seed: Of its random decisions, from 1.
    """

    seed: int


def _settings(kernel: Fused, _cpu: Cpu, best: Draw | None) -> Sequence[Draw] | Rejection:
    if not kernel.reductions:
        return Rejection("reduces nothing, so every draw is the same")
    return [Draw(seed) for seed in range(1, DRAWS + 1)] if best is None else []


def _schedule(kernel: Fused, cpu: Cpu, _packable: frozenset[int], knobs: Draw) -> Scheduled | Rejection:
    """Draw a schedule from MetaSchedule's design space for plain LLVM targets."""
    if not 1 <= knobs.seed <= _LAST_SEED:
        return Rejection(f"a seed is 1 to {_LAST_SEED}, got {knobs.seed}")
    for block in kernel.blocks:
        if _RULE in kernel.schedule.get(block).annotations:
            kernel.schedule.unannotate(block, _RULE)
    module = kernel.schedule.mod
    generator = PostOrderApply(sch_rules="llvm", postprocs="llvm", mutator_probs="llvm")  # none needs an intrinsic
    context = tune_context(module, Target({"kind": "llvm", "num-cores": cpu.threads}), generator, knobs.seed)
    spaces = context.space_generator.generate_design_space(module)
    drawn = Schedule(module, seed=knobs.seed)
    undecided = Trace(spaces[knobs.seed % len(spaces)].trace.insts, {})
    undecided.apply_to_schedule(drawn, remove_postproc=True)
    if not all(process.apply(drawn) for process in context.space_generator.postprocs):
        return Rejection("MetaSchedule discarded this draw")
    return Scheduled(drawn.mod[ENTRY])


METASCHEDULE = Rule("metaschedule", Draw, _settings, _schedule)
