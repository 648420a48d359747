"""Schedule every fused kernel and store its constants in the order the schedule reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gos_adapt.errors import Rejection
from tvm_passes.compat import IRModule, PassContext, PrimFunc, module_pass, relax, structural_hash
from tvm_passes.kernel_calls import KernelCall, NewCall, rewrite_kernel_calls
from tvm_passes.schedules import Cpu, Scheduled, Variant, ignored, schedule_kernel, variants
from tvm_passes.schedules.kernel import Fused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tvm_passes.schedules import Storage

Choose = Callable[[str], Variant | Rejection | None]
"""Kernel key -> the variant to use, or why none, or `None` where nobody knows better than the rules' first guess."""


def kernel_key(func: PrimFunc, constants: frozenset[int]) -> str:
    """Identity of an unscheduled kernel: what it computes, on which shapes, which operands are constant; not names."""
    plain = func.without_attr("global_symbol") if "global_symbol" in (func.attrs or {}) else func
    return f"{structural_hash(plain):016x}-{'.'.join(map(str, sorted(constants)))}"


def guess(_key: str) -> Variant | None:
    """Choose nothing: every kernel gets the first guess of its rule."""
    return None


@module_pass(opt_level=0, name="ScheduleKernels")
class ScheduleKernels:
    """Schedule each kernel as chosen, or else as the first rule that takes it guesses; equal kernels only once.

    Args:
        cpu: What to schedule for.
        choose: Which variant.

    Attributes:
        rules: After the pass: for each kernel call, in order, the rule that took it, or ``"none: <reasons>"`` when
            every rule declined, or nothing could be measured, and TVM's order is kept; then the schedule hints that
            were ignored.
    """

    def __init__(self, cpu: Cpu, choose: Choose = guess) -> None:
        self.cpu, self.choose = cpu, choose
        self.rules: list[str] = []

    def transform_module(self, module: IRModule, _context: PassContext) -> IRModule:
        """Apply the pass."""
        self.rules = []
        done: dict[tuple[str, frozenset[int]], tuple[str, Scheduled]] = {}

        def schedule(call: KernelCall) -> NewCall:
            key = (call.kernel, call.constants)
            if key not in done:
                done[key] = self._schedule(call)
            rule, scheduled = done[key]
            self.rules.append(rule)
            constants = {i: _stored(call.args[i], storage) for i, storage in scheduled.constants.items()}
            return NewCall(scheduled.func.with_attrs(dict(call.func.attrs or {})), call.result, constants)

        return rewrite_kernel_calls(module, schedule)

    def _schedule(self, call: KernelCall) -> tuple[str, Scheduled]:
        chosen = self.choose(kernel_key(call.func, call.constants))
        if isinstance(chosen, Rejection):
            return f"none: {chosen.reason}", Scheduled(call.func)
        if opaque := Fused(call.func).opaque:
            return f"none: {opaque}", Scheduled(call.func)
        hints, reasons = Fused(call.func).hints, []
        for variant in self._in_turn(call, chosen):
            if isinstance(variant, Rejection):
                reasons.append(variant.reason)
                continue
            result = schedule_kernel(call.func, self.cpu, call.constants, variant)
            if isinstance(result, Scheduled):
                return variant.rule + _note(ignored(variant, hints)), result
            reasons.append(f"{variant.rule}: {result.reason}")
        return f"none: {'; '.join(dict.fromkeys(reasons))}{_note(hints)}", Scheduled(call.func)

    def _in_turn(self, call: KernelCall, chosen: Variant | None) -> Iterator[Variant | Rejection]:
        """Yield the chosen variant, and only if that was not enough, all guesses."""
        if chosen is not None:
            yield chosen
        guesses = variants(call.func, self.cpu)
        yield from [guesses] if isinstance(guesses, Rejection) else guesses


def _note(ignored_hints: Mapping[str, int]) -> str:
    """What is said of hints that could not be taken."""
    return "".join(f", hint {knob}={value} ignored" for knob, value in ignored_hints.items())


def _stored(constant: Any, storage: Storage) -> Any:
    array = storage.apply(constant.value.numpy())
    return relax.const(array, str(array.dtype))  # without the dtype, 64-bit numbers would become 32-bit ones
