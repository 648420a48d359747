"""What makes a shape rule total: ranks, sizes and hyperparameters are checked before the rule itself sees them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from gos_adapt.errors import Rejection
from gos_adapt.instructions.base import Hyper, HyperValue, Shape

MAX_ELEMENTS = 2**28
"""Elements of one value (1 GiB of float32): a longer one in a text or a model is an attack or a mistake."""
MAX_SETTING = 2**16
"""Largest integer a hyperparameter may hold."""

ShapeRule = Callable[[tuple[Shape, ...], Hyper], Shape | Rejection]


@dataclass(frozen=True)
class Legal:
    """Which values of one hyperparameter an instruction can take, and how to say so."""

    text: str
    accepts: Callable[[HyperValue], bool]


def integer(low: int = 1, high: int = MAX_SETTING) -> Legal:
    """Accept one integer in ``[low, high]``."""
    return Legal(f"an integer in [{low}, {high}]", lambda value: type(value) is int and low <= value <= high)


def integers(count: int, low: int = 1, high: int = MAX_SETTING) -> Legal:
    """Accept `count` integers, each in ``[low, high]``."""

    def accepts(value: HyperValue) -> bool:
        return isinstance(value, tuple) and len(value) == count and all(integer(low, high).accepts(v) for v in value)

    return Legal(f"{count} integers in [{low}, {high}]", accepts)


def number(low: float, high: float) -> Legal:
    """Accept one float in ``[low, high]``."""
    return Legal(f"a float in [{low}, {high}]", lambda value: type(value) is float and low <= value <= high)


def word(*words: str) -> Legal:
    """Accept one of `words`."""
    return Legal(f"one of {', '.join(words)}", lambda value: value in words)


def any_shape(max_rank: int = 4) -> Legal:
    """Accept the shape of a value."""

    def accepts(value: HyperValue) -> bool:
        return isinstance(value, tuple) and any(integers(rank).accepts(value) for rank in range(1, max_rank + 1))

    return Legal(f"a shape of rank 1 to {max_rank}", accepts)


def shape_rule(rule: Callable[..., Shape | Rejection], *ranks: int | None, **settings: Legal) -> ShapeRule:
    """Make `rule` total.

    Args:
        rule: Called as ``rule(*shapes, **hyper)`` with positive shapes of the given ranks and legal settings only.
        ranks: Rank of each argument; `None` accepts any.
        settings: Every hyperparameter the instruction has; it takes exactly these.
    """

    def total(shapes: tuple[Shape, ...], hyper: Hyper) -> Shape | Rejection:
        if len(shapes) != len(ranks):
            return Rejection(f"takes {len(ranks)} arguments, got {len(shapes)}")
        for shape, rank in zip(shapes, ranks, strict=True):
            if not shape or min(shape) < 1 or (rank is not None and len(shape) != rank):
                return Rejection(
                    f"an argument of {'any rank' if rank is None else f'rank {rank}'} expected, got {shape}"
                )
        if hyper.keys() != settings.keys():
            return Rejection(f"takes the hyperparameters {sorted(settings)}, got {sorted(hyper)}")
        for name, legal in settings.items():
            if not legal.accepts(hyper[name]):
                return Rejection(f"{name} must be {legal.text}, got {hyper[name]}")
        result = rule(*shapes, **hyper)
        if isinstance(result, Rejection):
            return result
        if min(result) < 1 or math.prod(result) > MAX_ELEMENTS:
            return Rejection(f"the result's shape {result} is empty or has more than {MAX_ELEMENTS} elements")
        return result

    return total


def same_shape(*shapes: Shape) -> Shape | Rejection:
    """Rule of every element-wise instruction."""
    return shapes[0] if len(set(shapes)) == 1 else Rejection(f"arguments must have one shape, got {shapes}")


def half_mac(_arguments: tuple[Shape, ...], result: Shape, _hyper: Hyper) -> int:
    """One multiply or one add for each element of the result."""
    return (math.prod(result) + 1) // 2


def as_int(value: HyperValue) -> int:
    """Return a hyperparameter that `integer` accepted."""
    assert isinstance(value, int)
    return value


def as_ints(value: HyperValue) -> tuple[int, ...]:
    """Return a hyperparameter that `integers` accepted."""
    assert isinstance(value, tuple)
    return value
