"""The whole compiler as a list of phases: canonical Relax in, scheduled kernels out, and what each kernel computes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tvm_passes.block_layouts import BlockLayouts
from tvm_passes.compat import IRModule, PrimFunc, Sequential, dtype_of, relax, shape_of
from tvm_passes.count_work import Work, count_work
from tvm_passes.dump_phases import PHASE
from tvm_passes.fold_constants import FoldConstants
from tvm_passes.kernel_calls import kernel_calls, relax_functions
from tvm_passes.plan_sequence import PlanSequence
from tvm_passes.schedule_kernels import Choose, ScheduleKernels, guess, kernel_key
from tvm_passes.tag_tensors import TagTensors, TakeTags

if TYPE_CHECKING:
    from tvm_passes.schedules import Cpu

Parameter = tuple[tuple[int, ...], str]
"""Shape and dtype."""


@dataclass(frozen=True)
class Kernel:
    """One kernel call of a compiled module, in the order it runs.

    Attributes:
        function: The Relax function it stands in.
        name: Of the compiled kernel; calls of the same code share it.
        tensors: Names of the ONNX tensors it computes.
        rule: The schedule rule that took it.
        parameters: Shape and dtype of each, the result last.
        work: What one call has to do.
    """

    function: str
    name: str
    tensors: tuple[str, ...]
    rule: str
    parameters: tuple[Parameter, ...]
    work: Work


@dataclass(frozen=True)
class Fused:
    """A module whose kernels are fused and laid out, and not yet scheduled.

    Attributes:
        module: Relax functions and their kernels.
        tensors: For each of its `kernel_calls`, the ONNX tensors it computes.
    """

    module: IRModule
    tensors: tuple[tuple[str, ...], ...]

    @property
    def kernels(self) -> dict[str, tuple[PrimFunc, frozenset[int]]]:
        """Its distinct kernels by key, each with the positions of its constant parameters."""
        calls = kernel_calls(self.module)
        return {key: (call.func, call.constants) for key, call in zip(self.keys, calls, strict=True)}

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The key of each of its `kernel_calls`."""
        return tuple(kernel_key(call.func, call.constants) for call in kernel_calls(self.module))

    @property
    def work(self) -> tuple[Work, ...]:
        """What each of its `kernel_calls` has to do."""
        return tuple(count_work(call.func) for call in kernel_calls(self.module))


@dataclass(frozen=True)
class Lowered:
    """A module whose kernels are fused, laid out and scheduled, ready for code generation."""

    module: IRModule
    kernels: tuple[Kernel, ...]

    @property
    def parameters(self) -> dict[str, tuple[Parameter, ...]]:
        """Shapes and dtypes of what each function takes."""
        return {name: parameters_of(function) for name, function in relax_functions(self.module)}


def fuse(module: IRModule, cpu: Cpu, *, blocked_boundary: bool = False) -> Fused:
    """Run the first half of the compiler on every Relax function of `module`: what does not depend on measurements.

    Args:
        module: As imported.
        cpu: Whose lanes decide the layout.
        blocked_boundary: Let functions take and return blocked feature maps (see `BlockLayouts`).
    """
    tags = TakeTags()
    module = _run(module, {
        "0-canonical": [
            relax.transform.DecomposeOpsForInference(),  # batch normalisation becomes a scale and a shift
            FoldConstants(),
            relax.transform.CanonicalizeBindings(),
            relax.transform.FoldConstant(),
        ],
        "1-fused": [
            relax.transform.LegalizeOps(),  # one kernel per operator
            relax.transform.FoldConstant(),
            relax.transform.AnnotateTIROpPattern(),
            TagTensors(),
            relax.transform.FuseOps(),  # padding before a reduction, everything element-wise after it
            relax.transform.FuseTIR(),
            tags,
        ],
        "2-laid-out": [
            BlockLayouts(cpu, boundary=blocked_boundary),
        ],
    })  # fmt: skip
    return Fused(module, tuple(tags.tensors))


def schedule(fused: Fused, cpu: Cpu, choose: Choose = guess, *, timed_repeats: int = 0) -> Lowered:
    """Run the second half of the compiler.

    Args:
        fused: Result of `fuse`.
        cpu: What to schedule for.
        choose: Which variant of which kernel; see `gos_adapt.tuning` for measured choices.
        timed_repeats: Above 0: also add the functions that time their own kernels (see `PlanSequence`).
    """
    schedules = ScheduleKernels(cpu, choose)
    module = _run(fused.module, {
        "3-scheduled": [
            schedules,
        ],
    })  # fmt: skip
    kernels = tuple(
        Kernel(call.function, call.kernel, tensors, rule, parameters_of(call.func), work)
        for call, tensors, rule, work in zip(
            kernel_calls(module), fused.tensors, schedules.rules, fused.work, strict=True
        )
    )
    module = _run(module, {
        "4-planned": [
            PlanSequence(timed_repeats),  # one call, static memory
        ],
    })  # fmt: skip
    return Lowered(module, kernels)


def lower(module: IRModule, cpu: Cpu, choose: Choose = guess, *, blocked_boundary: bool = False) -> Lowered:
    """Run the whole compiler, up to code generation: `fuse`, then `schedule`."""
    return schedule(fuse(module, cpu, blocked_boundary=blocked_boundary), cpu, choose)


def _run(module: IRModule, phases: dict[str, list[Any]]) -> IRModule:
    for name, passes in phases.items():
        module = Sequential(passes, name=PHASE + name)(module)  # `DumpPhases` knows a phase by its name
    return module


def parameters_of(function: Any) -> tuple[Parameter, ...]:
    """Return what a kernel or a Relax function takes."""
    return tuple((shape_of(parameter), dtype_of(parameter)) for parameter in function.params)
