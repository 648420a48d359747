"""The whole compiler as one pass, for a compile flow of someone else's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm_passes.build import cpu_of
from tvm_passes.compat import IRModule, PassContext, module_pass
from tvm_passes.pipeline import lower
from tvm_passes.schedule_kernels import Choose, guess

if TYPE_CHECKING:
    from device_targets import Device


@module_pass(opt_level=0, name="LowerForDevice")
class LowerForDevice:
    """Lower a module of Relax operators, as an importer makes it, to scheduled kernels for a CPU.

    What stands in `tvm_passes.pipeline`, in that order. Shapes must be static. Compile the result with
    ``tvm.compile(module, tvm_passes.build.target_of(device))``; TVM's own `relax.get_pipeline` is not needed before it.

    Args:
        device: To schedule for.
        choose: Which variant of which kernel: `gos_adapt.tuning.Tuner.choose` gives those measured before; left out,
            each kernel gets the first guess of its rule.
    """

    def __init__(self, device: Device, choose: Choose = guess) -> None:
        self.device, self.choose = device, choose

    def transform_module(self, module: IRModule, _context: PassContext) -> IRModule:
        """Apply the pass."""
        return lower(module, cpu_of(self.device), self.choose).module
