"""Run all kernels of a function as one compiled function: calls in order, memory planned when it is compiled.

The virtual machine allocates each intermediate tensor and interprets each call, at half a microsecond a kernel. Here
the kernels are called directly, and tensors that never live at the same time share a slot of memory. All slots are one
allocation and all constants are one tensor, for TVM checks each tensor that a function takes, at ten nanoseconds and
20 ms of compilation.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from device_targets.session import TIMED
from tvm_passes.compat import (
    Constant,
    IRBuilder,
    IRModule,
    PassContext,
    PrimFunc,
    TirBuilder,
    bytes_of,
    call_kernel,
    dtype_of,
    module_pass,
    offset_pointer,
    relax,
    shape_of,
    tirx,
)
from tvm_passes.kernel_calls import is_kernel_call, kernel_calls, relax_functions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Array = np.ndarray[Any, Any]

_CLOCK_MONOTONIC = 1
_HEAP_BYTES = 2048
"""TVM puts small allocations (1024 bytes) on the stack and does not align them as kernels expect of tensors."""
_ALIGNMENT = 64
"""Bytes, of every tensor: what TVM promises kernels."""


@module_pass(opt_level=0, name="PlanSequence")
class PlanSequence:
    """Turn each Relax function that only calls kernels into a single call.

    Functions that do something else besides, or call none, stay as they are.

    Args:
        repeats: Above 0, each planned function ``f`` gets a sister ``f_timed`` that runs that many times and returns,
            besides the results, int64 times of the monotonic clock in nanoseconds, of shape (repeats, kernels + 1): one
            before the first kernel and one after each.
    """

    def __init__(self, repeats: int = 0) -> None:
        self.repeats = repeats

    def transform_module(self, module: IRModule, _context: PassContext) -> IRModule:
        """Apply the pass."""
        functions = dict(relax_functions(module))
        plans = {name: _plan(name, function, module) for name, function in functions.items()}
        called = {kernel for plan in plans.values() if plan for kernel, _ in plan.calls}
        planned = IRModule({
            variable: function.with_attr("global_symbol", variable.name_hint)
            if variable.name_hint in called
            else function
            for variable, function in module.functions_items()
            if not plans.get(variable.name_hint)
        })  # fmt: skip
        for name, plan in plans.items():
            if plan:
                _add(planned, name, plan, 0)
                if self.repeats:
                    _add(planned, name + TIMED, plan, self.repeats)
        return planned


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the function: a variable or constant of Relax, or one element of a variable that is a tuple."""

    value: Any
    type: Any = field(compare=False)
    element: int = 0


@dataclass(frozen=True)
class _Memory:
    """One piece of memory that holds several tensors: how large it is, and where each of them begins."""

    bytes: int
    offsets: Mapping[_Tensor, int]


@dataclass(frozen=True)
class _Plan:
    """One function: kernels in order with all their operands, and where each constant and each intermediate lies."""

    function: Any
    calls: Sequence[tuple[str, Sequence[_Tensor]]]
    constants: _Memory
    intermediates: _Memory
    outputs: Sequence[_Tensor]


@dataclass
class _Slots:
    """Slots of memory, each as large as the largest tensor that ever lives in it."""

    bytes: list[int] = field(default_factory=list)
    of: dict[_Tensor, int] = field(default_factory=dict)
    _free: list[int] = field(default_factory=list)

    def take(self, tensor: _Tensor) -> None:
        """Give `tensor` the free slot that fits best, grown if need be, or a new one."""
        size = bytes_of(tensor.type)
        if self._free:
            slot = min(self._free, key=lambda slot: (self.bytes[slot] < size, abs(self.bytes[slot] - size)))
            self._free.remove(slot)
            self.bytes[slot] = max(self.bytes[slot], size)
        else:
            slot = len(self.bytes)
            self.bytes.append(size)
        self.of[tensor] = slot

    def release(self, tensor: _Tensor) -> None:
        """Let others have the slot of `tensor`."""
        self._free.append(self.of[tensor])

    def memory(self) -> _Memory:
        """Put all slots beside each other."""
        starts = list(itertools.accumulate((_aligned(size) for size in self.bytes), initial=0))
        return _Memory(starts[-1], {tensor: starts[slot] for tensor, slot in self.of.items()})


def _plan(name: str, function: Any, module: IRModule) -> _Plan | None:
    """Plan one function; `None` where it does more than call kernels and return tensors, or calls none."""
    known: dict[Any, tuple[_Tensor, ...]] = {param: _tensors(param) for param in function.params}

    def tensors(value: Any) -> tuple[_Tensor, ...] | None:
        if isinstance(value, Constant):
            return _tensors(value)
        if isinstance(value, relax.Tuple):
            parts = [tensors(part) for part in value.fields]
            return None if None in parts else tuple(tensor for part in parts for tensor in part or ())
        if isinstance(value, relax.TupleGetItem):
            whole = known.get(value.tuple_value)
            return None if whole is None else (whole[value.index],)
        return known.get(value)

    of_call = {call.var: call for call in kernel_calls(module) if call.function == name}
    calls, computed = [], set()
    for block in function.body.blocks:
        for binding in block.bindings:
            if is_kernel_call(binding.value):
                call = of_call[binding.var]
                known[binding.var] = _tensors(binding.var)
                operands = tensors(relax.Tuple(call.args))
                assert operands is not None, "a kernel reads what was computed before"
                calls.append((call.kernel, (*operands, *known[binding.var])))
                computed |= set(known[binding.var])
            elif (alias := tensors(binding.value)) is not None:
                known[binding.var] = alias
            else:
                return None
    outputs = tensors(function.body.body) or ()
    if not calls or not outputs:
        return None
    used = itertools.chain(*(operands for _, operands in calls), outputs)
    constants = dict.fromkeys(tensor for tensor in used if isinstance(tensor.value, Constant))
    return _Plan(function, calls, _side_by_side(constants), _reused(calls, computed - set(outputs)), outputs)


def _tensors(value: Any) -> tuple[_Tensor, ...]:
    if isinstance(value.ty, relax.TupleType):
        return tuple(_Tensor(value, part, i) for i, part in enumerate(value.ty.fields))
    return (_Tensor(value, value.ty),)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _side_by_side(tensors: Iterable[_Tensor]) -> _Memory:
    slots = _Slots()
    for tensor in tensors:
        slots.take(tensor)
    return slots.memory()


def _reused(calls: Sequence[tuple[str, Sequence[_Tensor]]], intermediate: set[_Tensor]) -> _Memory:
    last = {tensor: i for i, (_, used) in enumerate(calls) for tensor in used}
    slots = _Slots()
    for i, (_, used) in enumerate(calls):
        mine = [tensor for tensor in dict.fromkeys(used) if tensor in intermediate]
        for tensor in mine:
            if tensor not in slots.of:
                slots.take(tensor)
        for tensor in mine:
            if last[tensor] == i:
                slots.release(tensor)
    return slots.memory()


def _add(module: IRModule, name: str, plan: _Plan, repeats: int) -> None:
    """Add Relax function `name`, whose only call is the whole sequence."""
    sequence = _sequence(plan, f"{name}_sequence", repeats)
    builder = relax.BlockBuilder(module)
    params = [relax.Var(param.name, param.ty) for param in plan.function.params]
    constants = [relax.const(_contents(plan.constants), "uint8")] if plan.constants.bytes else []
    types = [output.type for output in plan.outputs]
    if repeats:
        types.append(relax.TensorType((repeats, len(plan.calls) + 1), "int64"))
    with builder.function(name, params, attrs=dict(plan.function.attrs or {}) | {"global_symbol": name}):
        variable = builder.add_func(sequence, f"{name}_sequence")
        with builder.dataflow():
            call = relax.call_tir(variable, [*params, *constants], types if len(types) > 1 else types[0])
            result = builder.emit_output(call)
        builder.emit_func_output(result)
    module.update(builder.get())


def _contents(constants: _Memory) -> Array:
    contents = np.zeros(constants.bytes, np.uint8)
    for tensor, start in constants.offsets.items():
        data = np.ascontiguousarray(tensor.value.value.numpy()).reshape(-1).view(np.uint8)
        contents[start : start + data.size] = data
    return contents


def _sequence(plan: _Plan, name: str, repeats: int) -> PrimFunc:
    """Build the compiled function: parameters are the inputs, the constants and the results."""
    with IRBuilder() as builder:
        with TirBuilder.prim_func():
            TirBuilder.func_name(name)
            # TVM generates code for a whole module by what its last function says of aliases; without this, kernels in
            # the same module would load every operand again after each store.
            TirBuilder.func_attr({"global_symbol": name, "tirx.noalias": True})

            def parameter(of: str, shape: Sequence[int], dtype: str) -> Any:
                return TirBuilder.arg(of, TirBuilder.Buffer(shape, dtype))

            def place(memory: _Memory, pointer: Any) -> None:
                for tensor, start in memory.offsets.items():
                    pointers[tensor] = offset_pointer(pointer, start, dtype_of(tensor.type))

            pointers: dict[_Tensor, Any] = {}
            inputs = [tensor for param in plan.function.params for tensor in _tensors(param)]
            for i, tensor in enumerate(inputs):
                pointers[tensor] = parameter(f"input{i}", shape_of(tensor.type), dtype_of(tensor.type)).data
            if plan.constants.bytes:
                place(plan.constants, parameter("constants", (plan.constants.bytes,), "uint8").data)
            copies = []
            for i, tensor in enumerate(plan.outputs):
                result = parameter(f"output{i}", shape_of(tensor.type), dtype_of(tensor.type)).data
                if tensor in pointers:  # an input, a constant, or the same as an earlier result
                    copies.append((result, tensor))
                else:
                    pointers[tensor] = result
            if repeats:
                stamps = parameter("stamps", (repeats, len(plan.calls) + 1), "int64")
                now = TirBuilder.alloc_buffer((2,), "int64")
            if size := plan.intermediates.bytes:
                place(plan.intermediates, TirBuilder.alloc_buffer((max(size, _HEAP_BYTES),), "uint8").data)

            def stamp(turn: Any, kernel: int) -> None:
                TirBuilder.evaluate(TirBuilder.call_extern("int32", "clock_gettime", _CLOCK_MONOTONIC, now.data))
                TirBuilder.buffer_store(stamps, now[0] * 1_000_000_000 + now[1], [turn, kernel])

            def once(turn: Any = None) -> None:
                if turn is not None:
                    stamp(turn, 0)
                for i, (kernel, used) in enumerate(plan.calls):
                    operands = [(pointers[t], shape_of(t.type), dtype_of(t.type)) for t in used]
                    TirBuilder.evaluate(call_kernel(kernel, operands))
                    if turn is not None:
                        stamp(turn, i + 1)

            if repeats:
                with TirBuilder.serial(0, repeats) as turn:
                    once(turn)
            else:
                once()
            for result, tensor in copies:
                size = tirx.const(bytes_of(tensor.type), "int64")
                TirBuilder.evaluate(TirBuilder.call_extern("handle", "memcpy", result, pointers[tensor], size))
        return builder.get()
