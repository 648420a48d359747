"""The whole compiler as one list: canonical Relax in, scheduled kernels out, and what each kernel computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm_passes.block_layouts import BlockLayouts
from tvm_passes.compat import IRModule, Sequential, relax
from tvm_passes.fold_constants import FoldConstants
from tvm_passes.kernel_calls import kernel_calls, relax_functions
from tvm_passes.schedule_kernels import ScheduleKernels
from tvm_passes.tag_tensors import TagTensors, take_tags

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
    """

    function: str
    name: str
    tensors: tuple[str, ...]
    rule: str
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class Lowered:
    """A module whose kernels are fused, laid out and scheduled, ready for code generation."""

    module: IRModule
    kernels: tuple[Kernel, ...]

    @property
    def parameters(self) -> dict[str, tuple[Parameter, ...]]:
        """Shapes and dtypes of what each function takes."""
        return {name: tuple(map(_parameter, function.params)) for name, function in relax_functions(self.module)}


def lower(module: IRModule, cpu: Cpu, *, blocked_boundary: bool = False) -> Lowered:
    """Run the compiler's middle on every Relax function of `module`.

    Args:
        module: As imported.
        cpu: What to schedule for.
        blocked_boundary: Let functions take and return blocked feature maps (see `BlockLayouts`).
    """
    fuse = Sequential([
        # Phase 0: canonical Relax
        relax.transform.DecomposeOpsForInference(),
        FoldConstants(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.FoldConstant(),
        # Phase 1: one kernel per operator, then one per fused group
        relax.transform.LegalizeOps(),
        relax.transform.FoldConstant(),
        relax.transform.AnnotateTIROpPattern(),
        TagTensors(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ])  # fmt: skip
    module, tensors = take_tags(fuse(module))
    schedule = ScheduleKernels(cpu)
    finish = Sequential([
        # Phase 2: layout
        BlockLayouts(cpu, boundary=blocked_boundary),
        # Phase 3: schedules
        schedule,
    ])  # fmt: skip
    module = finish(module)
    calls = kernel_calls(module)
    kernels = tuple(
        Kernel(call.function, call.kernel, names, rule, tuple(_parameter(p) for p in call.func.params))
        for call, names, rule in zip(calls, tensors, schedule.rules, strict=True)
    )
    return Lowered(module, kernels)


def _parameter(parameter: Any) -> Parameter:
    return tuple(int(size) for size in parameter.ty.shape), str(parameter.ty.dtype)
