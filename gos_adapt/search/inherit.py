"""Weights of what was bred: those of its parents where they fit, otherwise fresh ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gos_adapt.instructions import INSTRUCTIONS
from gos_adapt.instructions.base import Kind
from gos_adapt.operators.factors import centre, he_normal, surrounded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gos_adapt.instructions.base import Shape
    from gos_adapt.model.model import Array
    from gos_adapt.operators.graph import OperatorGraph


def inherit(
    operator: OperatorGraph, parents: Sequence[Array] = (), sources: Sequence[int | None] = ()
) -> tuple[Array, ...]:
    """Return a weight for each leaf: what it was in a parent, resized; else an unused one of its shape; else fresh.

    Args:
        operator: With weight leaves.
        parents: Weights of all parents, one after the other.
        sources: For each leaf its index among these, or `None` for a new one; all are new when empty.
    """
    sources = sources or [None] * len(operator.weights)
    unused = [array for i, array in enumerate(parents) if i not in sources]
    weights = []
    for leaf, source in zip(operator.weights, sources, strict=True):
        shape = operator.nodes[leaf].shape
        own = None if source is None else _resized(parents[source], shape)
        match = next((i for i, array in enumerate(unused) if array.shape == shape), None)
        if own is None and match is not None:
            own = unused.pop(match)
        weights.append(_fresh(operator, leaf) if own is None else own)
    return tuple(weights)


def _resized(array: Array, shape: Shape) -> Array | None:
    """Cut off channels, and the rim of filters or surround them with zeros; `None` where that does not give the shape.

    It does not where channels are missing, and where another instruction reads the leaf now.
    """
    if array.ndim != len(shape):
        return None
    part = array[tuple(slice(n) for n in shape[:2])]
    if len(shape) == 4:
        kept = (min(shape[2], array.shape[2]), min(shape[3], array.shape[3]))
        part = surrounded(centre(part, kept), shape[2:])
    return part if part.shape == shape else None


def _fresh(operator: OperatorGraph, leaf: int) -> Array:
    """He-normal for a layer (always the same for the same shape); one number a channel as its instruction says."""
    shape = operator.nodes[leaf].shape
    if len(shape) == 1:
        return np.full(shape, _initial(operator, leaf), np.float32)
    return he_normal(shape, np.random.default_rng(shape))


def _initial(operator: OperatorGraph, leaf: int) -> float:
    """Ones for a scale, zeros for a bias ..., as the first instruction that reads the leaf wants it."""
    reader = next((node for node in operator.nodes if leaf in node.args), None)
    initial = INSTRUCTIONS[reader.op].initial if reader else ()
    if reader is None or not initial:
        return 0.0
    return initial[reader.args.index(leaf) - INSTRUCTIONS[reader.op].arguments.count(Kind.FEATURE)]
