"""The ends of a model's stages: where one can look inside it and compare it with another.

A *stage* is what computes maps of one size, or vectors of one length. Its end is the last tensor of that size which
nothing bypasses: it holds all that the model still knows of its input there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import networkx as nx

from gos_adapt.model.sites import feature_shapes, find_sites

if TYPE_CHECKING:
    from gos_adapt.instructions.base import Shape
    from gos_adapt.model.model import Model


def stage_ends(model: Model, output: str) -> tuple[str, ...]:
    """Name the ends of the stages before a tensor, in model order; none is of the size of that tensor itself.

    Nor does any lie inside a site: whatever is replaced, they are still computed.
    """
    shapes = feature_shapes(model.proto.graph)
    inside = {name for site in find_sites(model) for name in site.nodes if name != site.output}
    passed = [name for name in _unavoidable(model, output) if name in shapes and name not in inside]
    last = {_size(shapes[name]): name for name in passed}.values()
    return tuple(name for name in passed if name in last and name != output)


def _unavoidable(model: Model, output: str) -> list[str]:
    """Name the tensors that every path from the first input to `output` passes: behind the input, itself the last."""
    source = model.inputs[0].name
    flow = nx.DiGraph()
    flow.add_node(source)
    flow.add_edges_from(
        (read, written)
        for node in model.proto.graph.node
        for read in node.input
        for written in node.output
        if read and written  # an optional one that is absent has no name
    )
    dominators = nx.immediate_dominators(flow, source)
    if output not in dominators:  # it does not depend on the input
        return []
    found = [output]
    while (before := dominators[found[-1]]) != source:
        found.append(before)
    return found[::-1]


def _size(shape: Shape) -> tuple[int | None, ...]:
    """A map's positions, whatever its channels; a vector's channels, also where it is a map of one position."""
    positions = shape[1:]
    return (None, *positions) if any(size != 1 for size in positions) else shape[:1]
