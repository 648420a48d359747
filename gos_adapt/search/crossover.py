"""Crossover: the head of one operator feeds the tail of the other.

1. Walk both operators in pre-order from their results.
2. Collect the pairs (value of the one, value of the other) of equal shape.
3. Choose a pair uniformly; in the second operator, the first one's value takes the other's place.

Reference: METHOD 1.3 (thesis algorithm 5). Pairs that give back a parent (input for input, result for result) are left
out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gos_adapt.errors import Rejection
from gos_adapt.instructions.base import Kind
from gos_adapt.operators.graph import THESIS
from gos_adapt.search.legal import legalise

if TYPE_CHECKING:
    import numpy as np

    from gos_adapt.operators.graph import Limits, Node, OperatorGraph


@dataclass(frozen=True)
class Child:
    """A legal canonical operator and how it came to be."""

    operator: OperatorGraph
    origin: str


def cross(
    head: OperatorGraph, tail: OperatorGraph, rng: np.random.Generator, limits: Limits = THESIS
) -> Child | Rejection:
    """Merge a random head of the one with the matching tail of the other.

    Both must have one input of the same shape; the child has `tail`'s output shape.
    """
    pairs = _pairs(head, tail)
    if not pairs:
        return Rejection("crossover: no value of the one fits a place in the other")
    i, j = pairs[int(rng.integers(len(pairs)))]
    operator = legalise(_merge(head, i, tail, j), tail.output_shape, limits)
    if isinstance(operator, Rejection):
        return Rejection(f"crossover: {operator.reason}")
    return Child(operator, f"cross v{i} of {head.key} into v{j} of {tail.key}")


def _pairs(head: OperatorGraph, tail: OperatorGraph) -> list[tuple[int, int]]:
    trivial = ((head.inputs[0], tail.inputs[0]), (len(head.nodes) - 1, len(tail.nodes) - 1))
    return [
        (i, j)
        for i in _features_in_preorder(head)
        for j in _features_in_preorder(tail)
        if head.types[i].shape == tail.types[j].shape and (i, j) not in trivial
    ]


def _features_in_preorder(graph: OperatorGraph) -> list[int]:
    """Feature nodes as a depth-first walk from the result first meets them."""
    order: dict[int, None] = {}
    stack = [len(graph.nodes) - 1]
    while stack:
        i = stack.pop()
        if i not in order:
            order[i] = None
            stack.extend(reversed(graph.nodes[i].args))
    return [i for i in order if graph.types[i].kind is Kind.FEATURE]


def _merge(head: OperatorGraph, i: int, tail: OperatorGraph, j: int) -> tuple[Node, ...]:
    """Head up to its value i, then `tail` with its input and its value j replaced by head's input and value i."""
    nodes = list(head.nodes[: i + 1])
    if j == len(tail.nodes) - 1:
        return tuple(nodes)
    position = {tail.inputs[0]: head.inputs[0], j: i}
    for old, node in enumerate(tail.nodes):
        if old not in position:
            position[old] = len(nodes)
            nodes.append(replace(node, args=tuple(position[a] for a in node.args)))
    return tuple(nodes)
