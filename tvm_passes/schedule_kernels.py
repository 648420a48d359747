"""Schedule every fused kernel and store its constants in the order the schedule reads them."""

from __future__ import annotations

from typing import Any

from tvm_passes.compat import IRModule, PassContext, module_pass, relax
from tvm_passes.kernel_calls import KernelCall, NewCall, rewrite_kernel_calls
from tvm_passes.schedules import Cpu, Packing, Scheduled, schedule_kernel


@module_pass(opt_level=0, name="ScheduleKernels")
class ScheduleKernels:
    """Apply the first schedule rule that takes each kernel; kernels that occur twice are scheduled once.

    Attributes:
        rules: After the pass: for each kernel call, in order, the rule that took it.
    """

    def __init__(self, cpu: Cpu) -> None:
        self.cpu = cpu
        self.rules: list[str] = []

    def transform_module(self, module: IRModule, _context: PassContext) -> IRModule:
        """Apply the pass."""
        self.rules = []
        done: dict[tuple[str, frozenset[int]], Scheduled] = {}

        def schedule(call: KernelCall) -> NewCall:
            key = (call.kernel, call.constants)
            if key not in done:
                done[key] = schedule_kernel(call.func, self.cpu, call.constants)
            scheduled = done[key]
            self.rules.append(scheduled.rule)
            constants = {i: _packed(call.args[i], packing) for i, packing in scheduled.packings.items()}
            return NewCall(scheduled.func.with_attrs(dict(call.func.attrs or {})), call.result, constants)

        return rewrite_kernel_calls(module, schedule)


def _packed(constant: Any, packing: Packing) -> Any:
    array = packing.apply(constant.value.numpy())
    return relax.const(array, str(array.dtype))  # without the dtype, 64-bit numbers would become 32-bit ones
