"""The ends of a model's stages: where one can look inside it and compare it with another.

A *stage* is what computes maps of one size, or vectors of one length. Its end is the last tensor of that size which
nothing bypasses: it holds all that the model still knows of its input there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import networkx as nx

from gos_adapt.model.sites import find_sites

if TYPE_CHECKING:
    from gos_adapt.instructions.base import Shape
    from gos_adapt.model.model import Model


def stage_ends(model: Model, output: str) -> tuple[str, ...]:
    """Name the ends of the stages before a tensor, in model order, itself not among them; only what a site writes.

    None lies inside a site, so whatever is replaced, they are still computed: inside a branch everything is bypassed,
    and inside an attention no other site writes anything.
    """
    shapes = {site.output: site.output_shape for site in find_sites(model)}
    passed = [name for name in _unavoidable(model, output) if name in shapes]
    last = {_size(shapes[name]): name for name in passed}
    return tuple(name for name in passed if last[_size(shapes[name])] == name != output)


def _unavoidable(model: Model, output: str) -> list[str]:
    """Name the tensors that every path from the first input to `output` passes, in model order."""
    source = model.inputs[0].name
    flow = nx.DiGraph()
    flow.add_node(source)
    flow.add_edges_from(
        (read, written) for node in model.proto.graph.node for read in node.input for written in node.output
    )
    dominators = nx.immediate_dominators(flow, source)
    if output not in dominators:  # it does not depend on the input
        return []
    found = [output]
    while found[-1] != source:
        found.append(dominators[found[-1]])
    return found[::-1]


def _size(shape: Shape) -> tuple[int | None, ...]:
    """A map's positions, whatever its channels; a vector's channels, also where it is a map of one position."""
    channels, *positions = shape
    return (None, *positions) if any(size > 1 for size in positions) else (channels,)
