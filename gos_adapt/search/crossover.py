"""Crossover: the head of one operator feeds the tail of the other.

1. Walk both operators in pre-order from their results.
2. Collect the pairs (value of the one, value of the other) of equal shape.
3. Choose a pair uniformly; in the second operator, the first one's value takes the other's place.

Reference: thesis, algorithm 5. Pairs that give back a parent (input for input, result for result) are left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gos_adapt.errors import Rejection
from gos_adapt.instructions.base import Kind
from gos_adapt.operators.graph import THESIS
from gos_adapt.search.legal import legalise

if TYPE_CHECKING:
    import numpy as np

    from gos_adapt.operators.graph import Limits, Node, OperatorGraph
    from gos_adapt.search.legal import Child


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
    nodes, sources = _merge(head, i, tail, j)
    origin = f"cross v{i} of {head.key} into v{j} of {tail.key}"
    child = legalise(nodes, sources, tail.output_shape, origin, limits)
    return Rejection(f"crossover: {child.reason}") if isinstance(child, Rejection) else child


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


def _merge(head: OperatorGraph, i: int, tail: OperatorGraph, j: int) -> tuple[list[Node], list[int]]:
    """Head up to its value i, then `tail` with its input and its value j replaced by head's input and value i.

    Returns:
        The nodes, and for each of their weight leaves which it is of all weights of `head` and then of `tail`.
    """
    nodes = list(head.nodes[: i + 1])
    sources = [k for k, leaf in enumerate(head.weights) if leaf <= i]
    if j == len(tail.nodes) - 1:
        return nodes, sources
    position = {tail.inputs[0]: head.inputs[0], j: i}
    for old, node in enumerate(tail.nodes):
        if old not in position:
            position[old] = len(nodes)
            nodes.append(replace(node, args=tuple(position[a] for a in node.args)))
    return nodes, [*sources, *range(len(head.weights), len(head.weights) + len(tail.weights))]
