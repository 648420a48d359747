"""A fused kernel as the schedule rules see it, and what a rule gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tvm_passes.compat import PrimFunc, SBlockRV, Schedule, blocks_of, is_reduction, reduces, shape_of, tirx

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ENTRY = "main"
HINTS = "adapt.hints"
"""Attribute of a Relax function: tensor -> knob -> value; of a kernel: knob -> value. There it is part of what the
kernel is, so hinted kernels are tuned on their own."""


@dataclass(frozen=True)
class Packing:
    """How a constant parameter is stored: one entry per stored axis, outermost first.

    Attributes:
        parts: (axis of the original array, stride, extent) per stored axis: the stored index i stands for
            ``i * stride`` along that original axis. A `range` cut into parts this way is a reshape and a transpose.
    """

    parts: tuple[tuple[int, int, int], ...]

    def index_map(self, *indices: Any) -> list[Any]:
        """Stored indices of the element at the original `indices` (for TVM's `transform_layout`)."""
        return [indices[axis] // stride % extent for axis, stride, extent in self.parts]

    def apply(self, array: Any) -> Any:
        """Return `array` (numpy) as it must be stored."""
        by_axis = sorted(range(len(self.parts)), key=lambda i: (self.parts[i][0], -self.parts[i][1], -self.parts[i][2]))
        split = array.reshape([self.parts[i][2] for i in by_axis])
        return split.transpose([by_axis.index(i) for i in range(len(self.parts))]).copy()


class Storage(Protocol):
    """How a constant parameter must be stored."""

    def apply(self, array: Any) -> Any:
        """Return the constant as it must be stored."""


@dataclass(frozen=True)
class Scheduled:
    """A scheduled kernel and how its constant parameters must be stored, by position."""

    func: PrimFunc
    constants: Mapping[int, Storage] = field(default_factory=dict)


class Fused:
    """A fused kernel under a schedule: its blocks in program order.

    Attributes:
        schedule: The schedule being built; `Fused` is the only owner.
        blocks: All blocks in program order.
        reductions: Those that reduce.
    """

    def __init__(self, func: PrimFunc) -> None:
        self.schedule = Schedule(func)
        self.blocks: Sequence[SBlockRV] = blocks_of(self.schedule)
        self.reductions = [block for block in self.blocks if is_reduction(self.schedule.get(block))]

    @property
    def hints(self) -> dict[str, int]:
        """Knob -> value that this kernel is to have, from the schedule hints of the operator it computes."""
        hints = (self.func.attrs or {}).get(HINTS, {})
        return {str(knob): int(value) for knob, value in hints.items()}

    @property
    def func(self) -> PrimFunc:
        """The function as scheduled so far."""
        return self.schedule.mod[ENTRY]

    @property
    def results(self) -> int:
        """How many parameters the kernel writes."""
        params = list(self.func.params)
        written = [region.source for block in self.blocks for region in self.schedule.get(block).writes]
        return sum(any(param.same_as(buffer) for buffer in written) for param in params)

    @property
    def plain(self) -> bool:
        """Whether there is one result, and every block stores elements of one buffer: what a template takes."""
        stores = all(isinstance(self.schedule.get(block).body, tirx.BufferStore) for block in self.blocks)
        return stores and self.results <= 1

    @property
    def opaque(self) -> str | None:
        """Why nothing about a kernel may change: not all of it says what it reads and writes, or over which shape."""
        if not self.blocks:
            return "has no blocks"
        for block in map(self.schedule.get, self.blocks):
            if not block.writes:
                return f"its block {block.name_hint} does not say what it writes"
            if not all(isinstance(axis.dom.extent, tirx.IntImm) for axis in block.iter_vars):
                return f"its block {block.name_hint} has a shape that is not known"
        return None

    def written(self, block: SBlockRV) -> tuple[int, ...]:
        """Shape of the buffer a block writes."""
        return shape_of(self.schedule.get(block).writes[0].source)

    def axis_extents(self, block: SBlockRV) -> tuple[int, ...]:
        """Extents of a block's axes."""
        return tuple(int(axis.dom.extent) for axis in self.schedule.get(block).iter_vars)

    def blocked_axis(self, block: SBlockRV) -> int | None:
        """Which axis of `block` is stored in blocks of the last dimension, when its result is (n, c/b, ..., b)."""
        written, axes = self.written(block), self.schedule.get(block).iter_vars
        return 1 if len(written) == 5 and sum(not reduces(axis) for axis in axes) == 4 else None
