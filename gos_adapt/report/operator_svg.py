"""Draw an operator as inline SVG: layers from top to bottom, input first, long arrows led around the boxes between.

Reference: layered drawing after Sugiyama, Tagawa, Toda (1981), with one sweep of placement from the result upwards;
operators have at most twenty nodes, so nothing better is needed.
"""

from __future__ import annotations

from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import networkx as nx

if TYPE_CHECKING:
    from gos_adapt.report.facts import Box, Drawing

LINE, PADDING, GAP_X, GAP_Y, CHARACTER = 16.0, 8.0, 20.0, 28.0, 6.6

Bend = tuple[int, int, int]
"""Where the arrow from one box to another passes a layer."""


class Placed(NamedTuple):
    """Centre, width and height of a box; a bend is as high as its layer, and has no width."""

    x: float
    y: float
    width: float
    height: float


def operator_svg(drawing: Drawing, caption: str) -> str:
    """Return the `<svg>` element of `drawing`; `caption` is its accessible name. Both may hold hostile text."""
    places = _places(drawing)
    left = min(place.x - place.width / 2 for place in places.values()) - 2
    right = max(place.x + place.width / 2 for place in places.values()) + 2
    bottom = max(place.y + place.height / 2 for place in places.values()) + 2
    arrows = (_arrow(source, target, places) for source, target in dict.fromkeys(drawing.arrows))
    boxes = (_box(box, places[i]) for i, box in enumerate(drawing.boxes))
    return (
        f'<svg class="operator" role="img" aria-label="{escape(caption)}" width="{right - left:.0f}"'
        f' viewBox="{left:.1f} -2 {right - left:.1f} {bottom + 2:.1f}">{"".join(arrows)}{"".join(boxes)}</svg>'
    )


def _places(drawing: Drawing) -> dict[int | Bend, Placed]:
    """Place layer by layer, the result first: each node under its wish, or as near as its left neighbour allows."""
    graph = _with_bends(drawing)
    layers: dict[int, list[int | Bend]] = {}
    for node, layer in graph.nodes(data="layer"):
        layers.setdefault(layer, []).append(node)
    places: dict[int | Bend, Placed] = {}
    bottom = 0.0
    for _, nodes in sorted(layers.items()):
        sizes = {node: _size(drawing.boxes[node]) if isinstance(node, int) else (0.0, 0.0) for node in nodes}
        wishes = {node: _wish([places[consumer].x for consumer in graph.successors(node)]) for node in nodes}
        height = max(height for _, height in sizes.values())
        edge = float("-inf")
        for node in sorted(nodes, key=lambda node: (wishes[node], _rank(node, drawing), str(node))):
            x = max(wishes[node], edge + GAP_X + sizes[node][0] / 2)
            size = sizes[node] if isinstance(node, int) else (0.0, height)
            places[node] = Placed(x, bottom - height / 2, *size)
            edge = x + sizes[node][0] / 2
        bottom -= height + GAP_Y
    top = bottom + GAP_Y
    return {node: place._replace(y=place.y - top) for node, place in places.items()}


def _with_bends(drawing: Drawing) -> nx.DiGraph:
    """Boxes, arrows, and a bend wherever an arrow passes a layer.

    A layer is a distance from the result, so that a weight stands right above the instruction that uses it.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(drawing.boxes)))
    graph.add_edges_from(drawing.arrows)
    for layer, nodes in enumerate(nx.topological_generations(graph.reverse())):
        for node in nodes:
            graph.nodes[node]["layer"] = layer
    for source, target in list(graph.edges):
        layers = range(graph.nodes[source]["layer"] - 1, graph.nodes[target]["layer"], -1)
        if layers:
            graph.remove_edge(source, target)
            graph.add_nodes_from(((source, target, layer), {"layer": layer}) for layer in layers)
            nx.add_path(graph, [source, *((source, target, layer) for layer in layers), target])
    return graph


def _wish(consumers: list[float]) -> float:
    return sum(consumers) / len(consumers) if consumers else 0.0


def _rank(node: int | Bend, drawing: Drawing) -> int:
    """Left to right where wishes are equal: features, weights, passing arrows."""
    if not isinstance(node, int):
        return 2
    return 1 if drawing.boxes[node].role == "weight" else 0


def _size(box: Box) -> tuple[float, float]:
    lines = _lines(box)
    return max(map(len, lines)) * CHARACTER + 2 * PADDING, len(lines) * LINE + 2 * PADDING - 4


def _lines(box: Box) -> tuple[str, ...]:
    """Name, settings two to a line, shape."""
    settings = (" · ".join(box.settings[i : i + 2]) for i in range(0, len(box.settings), 2))
    return (box.name, *settings, f"→ {box.shape}" if box.role in ("instruction", "result") else box.shape)


def _box(box: Box, place: Placed) -> str:
    x, y, width, height = place.x - place.width / 2, place.y - place.height / 2, place.width, place.height
    radius = height / 2 if box.role == "input" else 4
    lines = "".join(_text(line, i, place.x) for i, line in enumerate(_lines(box)))
    return (
        f'<g class="node {box.role}"><rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        f' rx="{radius:.1f}"/><text x="{place.x:.1f}" y="{y + PADDING + LINE - 6:.1f}">{lines}</text></g>'
    )


def _text(line: str, index: int, x: float) -> str:
    style, dy = ("detail", LINE) if index else ("name", 0.0)
    return f'<tspan x="{x:.1f}" dy="{dy:g}" class="{style}">{escape(line)}</tspan>'


def _arrow(source: int, target: int, places: dict[int | Bend, Placed]) -> str:
    """A smooth path from under the source, straight down beside the boxes it passes, to above the target."""
    start, end = places[source], places[target]
    bends = [place for node, place in places.items() if isinstance(node, tuple) and node[:2] == (source, target)]
    aside = max((bend.x for bend in bends), default=start.x)
    # Arrows from aside land aside of the middle, so that two arrows do not share a head.
    tip_x = end.x + max(-end.width / 3, min(end.width / 3, (aside - end.x) / 4))
    tip_y = end.y - end.height / 2
    ends = sorted(bend.y + side * bend.height / 2 for bend in bends for side in (-1, 1))
    points = [(start.x, start.y + start.height / 2), *((aside, y) for y in ends), (tip_x, tip_y - 5)]
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        path += f"C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}"
    return f'<path class="edge" d="{path}"/><path class="head" d="M{tip_x:.1f} {tip_y:.1f}l-4 -7h8z"/>'
