"""Every TVM name that moved between versions, in one place; nobody else may know where they live.

Written for apache-tvm 0.27 with apache-tvm-ffi 0.1.14: `tir` became `tirx` and `s_tir` (apache/tvm#18913, #18735), a
buffer is a `Var` whose type holds its shape, compilation targets are dicts (apache/tvm#18785).
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import tvm
import tvm_ffi
from tvm import IRModule, relax, tirx
from tvm.ir import Call, GlobalVar, PointerType, PrimType, TensorLoad, load_json, save_json
from tvm.ir.expr import GenericConst as Constant
from tvm.ir.instrument import pass_instrument
from tvm.ir.transform import PassContext, Sequential, module_pass
from tvm.relax.expr_functor import mutator
from tvm.relax.frontend.onnx import from_onnx
from tvm.s_tir import SBlockRealize, Schedule, Trace
from tvm.s_tir.meta_schedule.space_generator import PostOrderApply
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.s_tir.schedule.schedule import ScheduleError
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.support import cc
from tvm.sym import Analyzer
from tvm.target import Target
from tvm.tirx import PrimFunc
from tvm.tirx.script import builder as TirBuilder
from tvm_ffi import register_error, structural_hash, structural_map, structural_walk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Analyzer",
    "Call",
    "Constant",
    "GlobalVar",
    "IRBuilder",
    "IRModule",
    "LoopRV",
    "PassContext",
    "PostOrderApply",
    "PrimFunc",
    "SBlockRV",
    "SBlockRealize",
    "Schedule",
    "ScheduleError",
    "Sequential",
    "T",
    "Target",
    "TensorLoad",
    "TirBuilder",
    "Trace",
    "blocks_of",
    "bytes_of",
    "call_kernel",
    "cc",
    "chooses",
    "dtype_of",
    "from_onnx",
    "is_reduction",
    "is_select",
    "load_json",
    "loads_in",
    "map_nodes",
    "module_pass",
    "mutator",
    "pass_instrument",
    "reduces",
    "register_error",
    "relax",
    "save_json",
    "shape_of",
    "structural_hash",
    "structural_walk",
    "tirx",
    "tune_context",
    "tvm",
    "variables_in",
]

_SELECT = tirx.if_then_else(tirx.Var("inside", "bool"), 0, 0).op
_REDUCTION_AXIS = 2  # tvm::tirx::IterVarType::kCommReduce


def shape_of(buffer: Any) -> tuple[int, ...]:
    """Return the static shape of a buffer (or of a typed value, or of a type).

    Raises:
        TypeError: when a dimension is symbolic.
    """
    return tuple(int(size) for size in _type(buffer).shape)


def dtype_of(value: Any) -> str:
    """Return the dtype of a buffer (or of a typed value, or of a type)."""
    return str(_type(value).dtype)


def bytes_of(value: Any) -> int:
    """Return how much memory a buffer (or a typed value, or a value of a type) of static shape takes."""
    return prod(shape_of(value)) * int(tvm_ffi.dtype(dtype_of(value)).itemsize)


def _type(value: Any) -> Any:
    return getattr(value, "ty", value)


def reduces(axis: Any) -> bool:
    """Whether a block sums (or takes the maximum ...) over this axis of it."""
    return int(axis.iter_type) == _REDUCTION_AXIS


def is_reduction(block: Any) -> bool:
    """Whether a block reduces over any of its axes."""
    return any(reduces(axis) for axis in block.iter_vars)


def is_select(body: Any) -> bool:
    """Whether a block stores one of two values, and computes only that one: how padding is written."""
    return chooses(getattr(body, "value", None))


def chooses(expression: Any) -> bool:
    """Whether an expression is one of two values, of which only that one is computed."""
    operator = getattr(expression, "op", None)
    return bool(operator is not None and operator.same_as(_SELECT))


def variables_in(expression: Any) -> list[Any]:
    """Return the variables that occur in a scalar expression."""
    found: list[Any] = []
    structural_walk(expression, (tirx.Var, found.append))
    return found


def loads_in(expression: Any) -> list[Any]:
    """Return every load of a buffer's element in a scalar expression."""
    found: list[Any] = []
    structural_walk(expression, (TensorLoad, found.append))
    return found


def map_nodes(expression: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Return a scalar expression with each node of one kind changed."""
    return structural_map(expression, (kind, change))


def blocks_of(schedule: Schedule) -> list[SBlockRV]:
    """Return the blocks of a schedule's one kernel in program order; none where its body is a single opaque one."""
    (function,) = schedule.mod.functions.values()
    return list(schedule.get_child_blocks(schedule.get_sblock(function.body.block.name_hint)))


def tune_context(module: IRModule, target: Target, generator: PostOrderApply, seed: int) -> Any:
    """Return a context of MetaSchedule that makes `generator` and its rules ready, as `TuneContext` would.

    But for its constructor in Python, which first reads every tensor intrinsic of TVM, for half a minute.
    """
    make, initialise = (tvm.get_global_func(f"s_tir.meta_schedule.TuneContext{step}") for step in ("", "Initialize"))
    context = make(module, target, generator, None, "main", 1, seed, lambda *_: None)
    initialise(context)
    return context


def call_kernel(name: str, tensors: Sequence[tuple[Any, tuple[int, ...], str]]) -> Any:
    """Return a direct call of a compiled kernel of the same library, on tensors given as (pointer, shape, dtype)."""
    return TirBuilder.call_cpacked(name, *(_tensor(*tensor) for tensor in tensors))


def _tensor(pointer: Any, shape: tuple[int, ...], dtype: str) -> Any:
    sizes = tvm.ir.Call(
        "tirx.tvm_stack_make_shape",
        [tirx.const(size, "int64") for size in shape],
        ret_ty=PointerType(PrimType("int64")),
    )
    fields = [pointer, sizes, 0, len(shape), tirx.const(0, dtype), tirx.const(0, "int64")]
    return tvm.ir.Call(tvm.ir.Op.get("tirx.tvm_stack_make_array"), fields, ret_ty="handle")
