"""Let weights absorb per-channel scales and biases: what is one family of functions gets one form.

| before | after |
|---|---|
| ``scale(scale(x, a), b)`` | ``scale(x, a b)`` |
| ``bias(bias(x, a), b)`` | ``bias(x, a + b)`` |
| ``scale(bias(x, a), b)`` | ``bias(scale(x, b), a b)`` |
| ``scale(layer(x, W), b)`` | ``layer(x, W b)``, the filters of each output channel scaled |
| ``layer(scale(x, a), W)`` | ``layer(x, W a)``, what they read of each input channel scaled |

Only where the weights are leaves that nothing else reads, and the value between is read once. Schedule hints between
stay where they are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gos_adapt.instructions.rules import as_int
from gos_adapt.instructions.schedule_hints import HINTS
from gos_adapt.operators.graph import WEIGHT, Node, OperatorGraph

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gos_adapt.instructions.base import Hyper

Array = np.ndarray[Any, Any]
Arrays = tuple[Array, ...]


@dataclass(frozen=True)
class Absorbed:
    """An operator after one step, and its weights from those before.

    Attributes:
        graph: It has the leaves of the operator before, one perhaps unread.
        weights: In the order of leaves, which stays.
    """

    graph: OperatorGraph
    weights: Callable[[Sequence[Array]], Arrays]


def absorb(graph: OperatorGraph) -> Absorbed | None:
    """Take the first step that is possible, if any is."""
    reads = Counter(a for node in graph.nodes for a in node.args)
    reads[len(graph.nodes) - 1] += 1
    steps = (
        _step(graph, below, i)
        for i, outer in enumerate(graph.nodes)
        if (below := _below(graph, reads, i)) is not None
        and _owns(graph, reads, outer)
        and _owns(graph, reads, graph.nodes[below])
    )
    return next((step for step in steps if step is not None), None)


def _step(graph: OperatorGraph, below: int, i: int) -> Absorbed | None:
    inner, outer = graph.nodes[below], graph.nodes[i]
    kept, given = graph.weights.index(inner.args[1]), graph.weights.index(outer.args[1])
    if (inner.op, outer.op) == ("channel_bias", "channel_scale"):
        exchanged = {below: Node("channel_scale", inner.args), i: Node("channel_bias", outer.args)}
        return _changed(graph, exchanged, lambda w: {kept: w[given], given: w[kept] * w[given]})
    if join := _FROM_ABOVE.get((inner.op, outer.op)):
        return _changed(graph, {i: _alias(outer)}, lambda w: {kept: join(w[kept], w[given])})
    if inner.op == "channel_scale" and (scaled := _FROM_BELOW.get(outer.op)):
        return _changed(graph, {below: _alias(inner)}, lambda w: {given: scaled(w[given], w[kept], dict(outer.hyper))})
    return None


def _alias(node: Node) -> Node:
    return Node("identity", node.args[:1])


_FROM_ABOVE: dict[tuple[str, str], Callable[[Array, Array], Array]] = {
    ("channel_scale", "channel_scale"): lambda a, b: a * b,
    ("channel_bias", "channel_bias"): lambda a, b: a + b,
    ("cross_correlation", "channel_scale"): lambda w, b: w * b.reshape(-1, 1, 1, 1),
    ("matrix_product", "channel_scale"): lambda w, b: w * b,
}
"""(inner, outer) -> weights of the inner one that has absorbed the outer one's."""


def _scaled_filters(w: Array, a: Array, hyper: Hyper) -> Array:
    groups = as_int(hyper["groups"])
    filters: Array = w.reshape(groups, -1, *w.shape[1:]) * a.reshape(groups, 1, -1, 1, 1)
    return filters.reshape(w.shape)


_FROM_BELOW: dict[str, Callable[[Array, Array, Hyper], Array]] = {
    "cross_correlation": _scaled_filters,
    "matrix_product": lambda w, a, _hyper: w * a[:, None],
}
"""Layer -> its weights when it has absorbed a scale of what it reads."""


def _below(graph: OperatorGraph, reads: Counter[int], i: int) -> int | None:
    """The node whose value node `i` alone reads first, hints left out."""
    args = graph.nodes[i].args
    while args and reads[args[0]] == 1:
        if graph.nodes[args[0]].op not in HINTS:
            return args[0]
        args = graph.nodes[args[0]].args
    return None


def _owns(graph: OperatorGraph, reads: Counter[int], node: Node) -> bool:
    """Whether a node reads one feature and a weight leaf of its own."""
    return len(node.args) == 2 and graph.nodes[node.args[1]].op == WEIGHT and reads[node.args[1]] == 1


def _changed(
    graph: OperatorGraph, changes: Mapping[int, Node], absorbed: Callable[[Sequence[Array]], Mapping[int, Array]]
) -> Absorbed:
    nodes = tuple(changes.get(i, node) for i, node in enumerate(graph.nodes))

    def weights(before: Sequence[Array]) -> Arrays:
        after = absorbed(before)
        return tuple(after.get(k, array) for k, array in enumerate(before))

    return Absorbed(OperatorGraph(nodes), weights)
