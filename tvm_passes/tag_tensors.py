"""Carry the name of the ONNX tensor through fusion, so that every fused kernel knows which part of the model it is.

Fusion renames and shares freely, but keeps the annotations of blocks. `TagTensors` gives every kernel call its own copy
of the kernel with the tensor's name on its blocks; after fusion `TakeTags` reads the names and gives the copies up
again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm_passes.compat import IRModule, PassContext, PrimFunc, Schedule, blocks_of, module_pass
from tvm_passes.kernel_calls import KernelCall, NewCall, kernel_calls, relax_functions, rewrite_kernel_calls
from tvm_passes.schedules.kernel import HINTS

if TYPE_CHECKING:
    from collections.abc import Mapping

_TAG = "adapt.tensor"


@module_pass(opt_level=0, name="TagTensors")
class TagTensors:
    """Write the name of the tensor each kernel computes (its variable's name) on the kernel's blocks."""

    def transform_module(self, module: IRModule, _context: PassContext) -> IRModule:
        """Apply the pass."""
        return rewrite_kernel_calls(module, _tag)


@module_pass(opt_level=0, name="TakeTags")
class TakeTags:
    """Read the tags and remove them; what the function says about the schedule of tensors is put on their kernels.

    Attributes:
        tensors: After the pass: for each kernel call of the module, the ONNX tensors it computes.
    """

    def __init__(self) -> None:
        self.tensors: list[tuple[str, ...]] = []

    def transform_module(self, module: IRModule, _context: PassContext) -> IRModule:
        """Apply the pass."""
        self.tensors = [_tensors(call) for call in kernel_calls(module)]
        hints = {name: dict((function.attrs or {}).get(HINTS, {})) for name, function in relax_functions(module)}
        return rewrite_kernel_calls(module, lambda call: _untag(call, hints[call.function]))


def _tag(call: KernelCall) -> NewCall:
    schedule = Schedule(call.func)
    for block in blocks_of(schedule):
        schedule.annotate(block, _TAG, call.var.name)
    return NewCall(_named(call, schedule), call.result)


def _untag(call: KernelCall, hints: Mapping[str, Mapping[str, int]]) -> NewCall:
    schedule = Schedule(call.func)
    for block in blocks_of(schedule):
        if _TAG in schedule.get(block).annotations:
            schedule.unannotate(block, _TAG)
    mine = {knob: value for tensor in _tensors(call) for knob, value in hints.get(tensor, {}).items()}
    func = _named(call, schedule)
    return NewCall(func.with_attr(HINTS, mine) if mine else func, call.result)


def _tensors(call: KernelCall) -> tuple[str, ...]:
    schedule = Schedule(call.func)
    blocks = (schedule.get(block) for block in blocks_of(schedule))
    return tuple(dict.fromkeys(str(block.annotations[_TAG]) for block in blocks if _TAG in block.annotations))


def _named(call: KernelCall, schedule: Schedule) -> PrimFunc:
    return schedule.mod["main"].with_attrs(dict(call.func.attrs or {}))
