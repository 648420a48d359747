"""Take the schedule hints of an operator apart from what it computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gos_adapt.instructions.schedule_hints import HINTS
from gos_adapt.operators.graph import Node, OperatorGraph

if TYPE_CHECKING:
    from gos_adapt.instructions.base import HyperValue


def is_hinted(graph: OperatorGraph, plain: OperatorGraph) -> bool:
    """Whether an operator is `plain`, which has no hints, with some."""
    return graph.text != plain.text and without_hints(graph)[0].text == plain.text


def without_hints(graph: OperatorGraph) -> tuple[OperatorGraph, dict[int, dict[str, HyperValue]]]:
    """Return the operator without hints, its weights as before, and knob -> value for each of its hinted nodes."""
    kept: list[Node] = []
    position: list[int] = []
    hints: dict[int, dict[str, HyperValue]] = {}
    for node in graph.nodes:
        if node.op in HINTS:
            position.append(position[node.args[0]])
            hints.setdefault(position[-1], {}).update(node.hyper)
        else:
            kept.append(Node(node.op, tuple(position[a] for a in node.args), node.hyper, node.shape))
            position.append(len(kept) - 1)
    if position[-1] != len(kept) - 1:  # the result is a hint on something that is not the last
        kept.append(Node("identity", (position[-1],)))
    return OperatorGraph(tuple(kept)), hints
