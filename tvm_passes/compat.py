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
from tvm.ir import Call, GlobalVar, PointerType, PrimType, StringImm, TensorLoad, load_json, save_json
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
from tvm.tirx import AssertStmt, AttrStmt, DeclBuffer, Evaluate, PrimFunc, SeqStmt, Var
from tvm.tirx.script import builder as TirBuilder
from tvm.tirx.stmt import Return
from tvm_ffi import register_error, structural_hash, structural_map, structural_walk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Analyzer",
    "Call",
    "Constant",
    "Evaluate",
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
    "c_function",
    "call_c_function",
    "call_kernel",
    "cc",
    "chooses",
    "dtype_of",
    "from_onnx",
    "is_reduction",
    "is_select",
    "kernel_called",
    "load_json",
    "loads_in",
    "map_nodes",
    "module_pass",
    "mutator",
    "offset_pointer",
    "pass_instrument",
    "reduces",
    "register_error",
    "register_lowering",
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


def map_nodes(tree: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Return an expression or a function with each node of one kind changed."""
    return structural_map(tree, (kind, change))


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


def offset_pointer(pointer: Any, offset: int, dtype: str) -> Any:
    """Return a pointer to elements of `dtype` that begin `offset` bytes behind `pointer`."""
    add = tvm.ir.Op.get("tirx.handle_add_byte_offset")
    return tvm.ir.Call(add, [pointer, tirx.const(offset, "int64")], ret_ty=PointerType(PrimType(dtype)))


def kernel_called(statement: Evaluate) -> tuple[str, list[Any]] | None:
    """Return name and pointers of a `call_kernel` that was evaluated; `None` for any other statement."""
    call = statement.value
    if not isinstance(call, Call) or not call.op.same_as(_CALL_KERNEL):
        return None
    name, *tensors = call.args[: 1 + sum(_is_tensor(argument) for argument in call.args)]
    return name.value, [tensor.args[0] for tensor in tensors]


def _is_tensor(argument: Any) -> bool:
    return isinstance(argument, Call) and argument.op.same_as(_MAKE_TENSOR)


_CALL_KERNEL = tvm.ir.Op.get("tirx.tvm_call_cpacked")
_MAKE_TENSOR = tvm.ir.Op.get("tirx.tvm_stack_make_array")


def c_function(function: PrimFunc, symbol: str) -> PrimFunc:
    """Turn a kernel into ``int symbol(float* ...)``, which returns 0; to be compiled after `register_lowering`."""
    pointers = [Var(f"p{i}", PointerType(PrimType(dtype_of(param)))) for i, param in enumerate(function.params)]
    views = [DeclBuffer(param, data=pointer) for param, pointer in zip(function.params, pointers, strict=True)]
    return PrimFunc(pointers, SeqStmt([*views, function.body]), PrimType("int32"), function.attrs).with_attrs({
        "global_symbol": symbol,
        "calling_conv": 1,  # tvm::CallingConv::kCPackedFunc: TVM takes it as done and changes no signature
    })  # fmt: skip


def call_c_function(symbol: str, pointers: Sequence[Any]) -> AssertStmt:
    """Call what `c_function` made; fail where that fails."""
    call = TirBuilder.call_extern("int32", symbol, *pointers)
    return AssertStmt(call == 0, StringImm("RuntimeError"), [StringImm(f"{symbol} failed")])


@module_pass(opt_level=0, name="FinishCFunctions")  # type: ignore[untyped-decorator]
def _finish_c_functions(module: IRModule, _context: PassContext) -> IRModule:
    """Say of each function on which device it allocates memory, and let it return 0 once all of that is free again."""
    finished = IRModule({}, attrs=module.attrs)
    for variable, function in module.functions_items():
        body = function.body
        for key, value in (("device_id", 0), ("device_type", tvm.cpu().dlpack_device_type())):
            body = AttrStmt(tvm.runtime.convert("default"), key, tirx.const(value, "int32"), body)
        finished[variable] = function.with_body(SeqStmt([body, Return(tirx.const(0, "int32"))]))
    return finished


def register_lowering(name: str) -> None:
    """Register under a name TVM's own passes from kernels to what code is generated of, and what C functions need."""

    def lowering() -> tuple[Any, Callable[[], Any], Callable[[], Any]]:
        passes, finish_host, finish_device = tvm.tirx.get_tir_pipeline("default")
        return Sequential([passes, _finish_c_functions]), finish_host, finish_device

    tvm.tirx.register_tir_pipeline(name, lowering)
