"""What an operator means: numpy, node by node. Every other form is tested against this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gos_adapt.instructions import INSTRUCTIONS
from gos_adapt.instructions.base import Kind
from gos_adapt.operators.graph import INPUT, LEAVES, WEIGHT, Node, OperatorGraph

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    Array = np.ndarray[Any, Any]


def evaluate(graph: OperatorGraph, inputs: Sequence[Array], weights: Sequence[Array]) -> Array:
    """Compute the operator.

    Args:
        graph: Any operator.
        inputs: One array for each input leaf, in node order, each ``(n, *shape)``.
        weights: One array for each weight leaf, in node order.

    Returns:
        The result, ``(n, *graph.output_shape)``.

    Raises:
        ValueError: when arrays are missing or of the wrong shape.
    """
    check_weights(graph, weights)
    if len(inputs) != len(graph.inputs):
        raise ValueError(f"{len(graph.inputs)} inputs expected, got {len(inputs)}")
    for i, array in zip(graph.inputs, inputs, strict=True):
        if array.shape[1:] != graph.nodes[i].shape:
            raise ValueError(f"input v{i} must be (n, *{graph.nodes[i].shape}), got {array.shape}")
    leaves = {INPUT: iter(inputs), WEIGHT: iter(weights)}
    values: list[Array] = []
    for node in graph.nodes:
        values.append(next(leaves[node.op]) if node.op in LEAVES else _apply(node, values))
    return values[-1]


def fold(graph: OperatorGraph, weights: Sequence[Array]) -> tuple[OperatorGraph, tuple[Array, ...]]:
    """Compute what needs no input: every instruction on weights alone becomes a weight leaf.

    Returns:
        An operator of the same meaning in which only features are computed, and its weights.
    """
    check_weights(graph, weights)
    leaves = iter(weights)
    constants: dict[int, Array] = {}
    for i, node in enumerate(graph.nodes):
        if graph.types[i].kind is Kind.WEIGHT:
            constants[i] = next(leaves) if node.op == WEIGHT else _apply(node, constants)
    features = {i for i in range(len(graph.nodes)) if i not in constants}
    kept = sorted(features | {a for i in features for a in graph.nodes[i].args})
    position = {old: new for new, old in enumerate(kept)}
    nodes = (
        Node(WEIGHT, shape=graph.types[i].shape)
        if i in constants
        else Node(node.op, tuple(position[a] for a in node.args), node.hyper, node.shape)
        for i, node in ((i, graph.nodes[i]) for i in kept)
    )
    return OperatorGraph(tuple(nodes)), tuple(constants[i] for i in kept if i in constants)


def check_weights(graph: OperatorGraph, weights: Sequence[Array]) -> None:
    """Raise unless `weights` are what `graph` expects.

    Raises:
        ValueError: with both lists of shapes.
    """
    shapes = tuple(array.shape for array in weights)
    if shapes != graph.weight_shapes:
        raise ValueError(f"weights must have the shapes {graph.weight_shapes}, got {shapes}")


def _apply(node: Node, values: Sequence[Array] | dict[int, Array]) -> Array:
    return INSTRUCTIONS[node.op].numpy(*(values[a] for a in node.args), **dict(node.hyper))
