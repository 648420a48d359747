"""Count what a kernel has to do: operations and bytes, read off the kernel before anything schedules it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm_passes.compat import Call, PrimFunc, SBlockRealize, bytes_of, chooses, structural_walk, tirx

_ARITHMETIC = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Max, tirx.Min)


@dataclass(frozen=True)
class Work:
    """What one run of a kernel has to do, however it is scheduled.

    Attributes:
        flops: Floating-point operations, by the definition of what is computed. A sum, difference, product, quotient,
            maximum or minimum is one, and so is a call of a mathematical function; a multiply-accumulate is two. Taps
            that fall on padding count. Choosing (padding), comparing, converting, moving, and what happens in called
            libraries or loops of unknown length do not. (A schedule may need fewer: Winograd's convolution does.)
        traffic_bytes: Size of everything it takes and gives.
    """

    flops: int
    traffic_bytes: int


def count_work(func: PrimFunc) -> Work:
    """Count the work of an unscheduled kernel of static shapes, as `tvm_passes.pipeline.fuse` leaves it."""
    return Work(_count(func.body), sum(map(bytes_of, func.params)))


def _count(statement: Any) -> int:
    if isinstance(statement, tirx.For):
        return int(statement.extent) * _count(statement.body)
    if isinstance(statement, tirx.SeqStmt):
        return sum(map(_count, statement.seq))
    if isinstance(statement, SBlockRealize):
        return _count(statement.block.body)
    if isinstance(statement, tirx.IfThenElse):
        return max(_count(case) for case in (statement.then_case, statement.else_case) if case is not None)
    if isinstance(statement, tirx.BufferStore):
        return _operations(statement.value)
    return 0


def _operations(expression: Any) -> int:
    """Floating-point operations in one evaluation; index arithmetic is of another type."""
    found: list[Any] = []
    structural_walk(expression, ((*_ARITHMETIC, Call), found.append))
    return sum(str(part.ty).startswith("float") and not chooses(part) for part in found)
