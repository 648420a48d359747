"""From edited nodes to a legal operator and its weights: every mutation and crossover ends here.

1. Drop nodes that the result does not use.
2. Derive the shapes of weight leaves from the features they meet, so that an edit upstream reaches downstream.
3. Restore the output shape: reshape, slice or pad channels, pool or repeat positions.
4. Check types and limits, and bring into canonical form.

Any step may answer with a `Rejection`. Weights follow: each leaf knows which of the parents' it was, or that it is new.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gos_adapt.errors import Rejection
from gos_adapt.instructions import INSTRUCTIONS
from gos_adapt.instructions.base import Kind
from gos_adapt.operators.canonical import canonicalise
from gos_adapt.operators.graph import (
    INPUT,
    LEAVES,
    THESIS,
    WEIGHT,
    Limits,
    Node,
    OperatorGraph,
    feature_arguments,
    infer_types,
    typed,
)
from gos_adapt.search.inherit import inherit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gos_adapt.instructions.base import Shape
    from gos_adapt.model.model import Array


@dataclass(frozen=True)
class Child:
    """A legal canonical operator and how it came to be.

    Attributes:
        operator: Canonical.
        origin: For its lineage.
        weights: From those of its parents, one after the other: where its fit starts.
    """

    operator: OperatorGraph
    origin: str
    weights: Callable[[Sequence[Array]], tuple[Array, ...]] = field(compare=False)


def legalise(
    nodes: Sequence[Node], sources: Sequence[int | None], output_shape: Shape, origin: str, limits: Limits = THESIS
) -> Child | Rejection:
    """Return the operator that `nodes` mean, with the given output shape, or why there is none.

    Args:
        nodes: Edited; the shapes of weight leaves need not fit.
        sources: For each weight leaf which of the parents' it is, counted over all parents; `None` for a new one.
        output_shape: Of the result.
        origin: What was done.
        limits: Of its size.
    """
    used = _used(nodes)
    if not any(nodes[i].op == INPUT for i in used):
        return Rejection("the result does not depend on the input")
    leaves = [i for i, node in enumerate(nodes) if node.op == WEIGHT]
    kept = [source for i, source in zip(leaves, sources, strict=True) if i in used]
    shaped = derive_weight_shapes(_renumbered(nodes, used))
    if isinstance(shaped, Rejection):
        return shaped
    types = infer_types(shaped)
    if isinstance(types, Rejection):
        return types
    restored = _restore_shape(shaped, types[-1].shape, output_shape)
    if isinstance(restored, Rejection):
        return restored
    graph = typed(restored, limits)
    if isinstance(graph, Rejection):
        return graph
    canonical = canonicalise(graph)
    return Child(canonical.graph, origin, lambda parents: canonical.weights(inherit(graph, parents, kept)))


def _used(nodes: Sequence[Node]) -> list[int]:
    """What the last node depends on, itself included, in order."""
    used = {len(nodes) - 1}
    for i in range(len(nodes) - 1, -1, -1):
        if i in used:
            used.update(nodes[i].args)
    return sorted(used)


def _renumbered(nodes: Sequence[Node], used: Sequence[int]) -> tuple[Node, ...]:
    position = {old: i for i, old in enumerate(used)}
    return tuple(replace(nodes[old], args=tuple(position[a] for a in nodes[old].args)) for old in used)


def derive_weight_shapes(nodes: tuple[Node, ...]) -> tuple[Node, ...] | Rejection:
    """Give each weight leaf the shape that the instruction reading it needs.

    Leaves below an instruction on weights alone keep theirs: the features do not determine them.
    """
    result = list(nodes)
    shapes: list[Shape] = []
    for i, node in enumerate(nodes):
        if node.op not in LEAVES and Kind.FEATURE in INSTRUCTIONS[node.op].arguments:
            feature_shapes = tuple(shapes[a] for a in feature_arguments(node))
            needed = INSTRUCTIONS[node.op].weight_shapes(feature_shapes, dict(node.hyper))
            for a, shape in zip(node.args[len(feature_shapes) :], needed, strict=True):
                if result[a].op == WEIGHT:
                    result[a] = replace(result[a], shape=shape)
                    shapes[a] = shape
        inferred = _shape(result[i], shapes)
        if isinstance(inferred, Rejection):
            return Rejection(f"v{i} = {node.op}: {inferred.reason}")
        shapes.append(inferred)
    return tuple(result)


def _shape(node: Node, shapes: Sequence[Shape]) -> Shape | Rejection:
    if node.op in LEAVES:
        return node.shape
    return INSTRUCTIONS[node.op].infer(tuple(shapes[a] for a in node.args), dict(node.hyper))


def _restore_shape(nodes: tuple[Node, ...], got: Shape, wanted: Shape) -> tuple[Node, ...] | Rejection:
    if got == wanted:
        return nodes
    if len(got) == len(wanted) == 3 and got[1:] != wanted[1:]:
        resized = _resize(got[1:], wanted[1:], last=len(nodes) - 1)
        if resized is not None:
            return _restore_shape((*nodes, resized), (got[0], *wanted[1:]), wanted)
    if got[1:] == wanted[1:]:
        return (*nodes, _match_channels(got[0], wanted[0], last=len(nodes) - 1))
    if math.prod(got) == math.prod(wanted):
        return (*nodes, Node("reshape", (len(nodes) - 1,), (("shape", wanted),)))
    return Rejection(f"output shape {got} cannot become {wanted}")


def _resize(got: Shape, wanted: Shape, last: int) -> Node | None:
    """Pool or repeat positions by a whole factor; `None` when there is none."""
    if all(g % w == 0 for g, w in zip(got, wanted, strict=True)):
        factor = tuple(g // w for g, w in zip(got, wanted, strict=True))
        return Node("average_pool", (last,), (("kernel", factor), ("padding", (0, 0, 0, 0)), ("stride", factor)))
    if all(w % g == 0 for g, w in zip(got, wanted, strict=True)):
        return Node("upsample", (last,), (("factor", tuple(w // g for g, w in zip(got, wanted, strict=True))),))
    return None


def _match_channels(got: int, wanted: int, last: int) -> Node:
    if got > wanted:
        return Node("channel_slice", (last,), (("start", 0), ("stop", wanted)))
    return Node("pad_channels", (last,), (("after", wanted - got), ("before", 0)))
