"""Take the kernels out of a planned module and turn them into C functions, ``int kernel(float*, ...)``.

TVM's own calling convention hands over a description of every tensor, and checks all that it says in every call. Inside
a sequence that was planned when it was compiled, nothing is left to check. And a kernel on its own, named by its code,
is compiled once for all models and libraries that call it (`object_files`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm_passes.compat import (
    Evaluate,
    IRModule,
    PrimFunc,
    c_function,
    call_c_function,
    kernel_called,
    map_nodes,
    structural_hash,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Separated:
    """A planned module in two parts.

    Attributes:
        module: Everything but the kernels that its sequences call.
        kernels: Those, by symbol; to be compiled by `tvm_passes.object_files`.
    """

    module: IRModule
    kernels: Mapping[str, PrimFunc]


def separate(module: IRModule) -> Separated:
    """Take out what the sequences made by `PlanSequence` call."""
    functions = {variable.name_hint: function for variable, function in module.functions_items()}
    symbols: dict[str, str] = {}

    def call(statement: Evaluate) -> Any:
        if (called := kernel_called(statement)) is None:
            return statement
        kernel, pointers = called
        if kernel not in symbols:
            symbols[kernel] = _symbol(kernel, functions[kernel])
        return call_c_function(symbols[kernel], pointers)

    changed = {
        variable: map_nodes(function, Evaluate, call) if isinstance(function, PrimFunc) else function
        for variable, function in module.functions_items()
    }
    rest = IRModule(
        {variable: function for variable, function in changed.items() if variable.name_hint not in symbols},
        attrs=module.attrs,
    )
    return Separated(rest, {symbol: c_function(functions[kernel], symbol) for kernel, symbol in symbols.items()})


def _symbol(kernel: str, function: PrimFunc) -> str:
    code = structural_hash(function.without_attr("global_symbol")) & 0xFFFF_FFFF_FFFF_FFFF
    return f"{kernel.rstrip('_0123456789')}_{code:016x}"
