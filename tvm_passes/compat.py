"""Every TVM name that moved between versions, in one place; nobody else may know where they live.

Written for apache-tvm 0.27 with apache-tvm-ffi 0.1.14: `tir` became `tirx` and `s_tir` (apache/tvm#18913, #18735), a
buffer is a `Var` whose type holds its shape, compilation targets are dicts (apache/tvm#18785).
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import IRModule, relax, tirx
from tvm.ir import Call, GlobalVar
from tvm.ir.expr import GenericConst as Constant
from tvm.ir.transform import PassContext, Sequential, module_pass
from tvm.relax.expr_functor import mutator
from tvm.relax.frontend.onnx import from_onnx
from tvm.s_tir import SBlockRealize, Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.s_tir.schedule.schedule import ScheduleError
from tvm.script import tirx as T
from tvm.support import cc
from tvm.target import Target
from tvm.tirx import PrimFunc
from tvm_ffi import register_error, structural_hash, structural_walk

__all__ = [
    "Call",
    "Constant",
    "GlobalVar",
    "IRModule",
    "LoopRV",
    "PassContext",
    "PrimFunc",
    "SBlockRV",
    "SBlockRealize",
    "Schedule",
    "ScheduleError",
    "Sequential",
    "T",
    "Target",
    "cc",
    "chooses",
    "from_onnx",
    "is_reduction",
    "is_select",
    "module_pass",
    "mutator",
    "reduces",
    "register_error",
    "relax",
    "shape_of",
    "structural_hash",
    "structural_walk",
    "tirx",
    "tvm",
    "variables_in",
]

_SELECT = tirx.if_then_else(tirx.Var("inside", "bool"), 0, 0).op
_REDUCTION_AXIS = 2  # tvm::tirx::IterVarType::kCommReduce


def shape_of(buffer: Any) -> tuple[int, ...]:
    """Return a buffer's (or a typed value's) static shape.

    Raises:
        TypeError: when a dimension is symbolic.
    """
    return tuple(int(size) for size in buffer.ty.shape)


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
