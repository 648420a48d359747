"""Mutation: one small, legal change to an operator.

| mutation | change |
|---|---|
| replace instruction | a node becomes another instruction that takes its arguments |
| change aggregation | what joins two features becomes another aggregation |
| add node | a value goes through a further instruction, or is joined with an earlier one, before its consumers see it |
| delete node | a node's consumers read its first argument instead |
| change hyperparameter | one setting takes another of its legal values |

Settings that belong together move together: a convolution's padding follows its kernel and dilation so that positions
stay aligned, and weight shapes follow everything (`search.legal`).

Reference: thesis 4.3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from gos_adapt.errors import Rejection
from gos_adapt.instructions import INSTRUCTIONS
from gos_adapt.instructions.base import HyperValue, Kind, Shape
from gos_adapt.instructions.rules import as_int, as_ints
from gos_adapt.instructions.windows import extent
from gos_adapt.operators.graph import LEAVES, THESIS, WEIGHT, Limits, Node, OperatorGraph
from gos_adapt.search.legal import legalise

if TYPE_CHECKING:
    import numpy as np

    from gos_adapt.search.legal import Child

Edit = tuple[list[Node], str]
"""Edited nodes (not yet legal) and what was done."""
HyperItems = tuple[tuple[str, HyperValue], ...]
Mutation = Callable[[OperatorGraph, "np.random.Generator"], Edit | Rejection]
T = TypeVar("T")
NEW = Node(WEIGHT, shape=(1,))
"""A weight that the parent does not have, known by its identity; `legalise` derives its shape."""


def mutate(graph: OperatorGraph, rng: np.random.Generator, limits: Limits = THESIS) -> Child | Rejection:
    """Apply one mutation, chosen uniformly; the child has the same input and output shapes."""
    name = _pick(list(MUTATIONS), rng)
    edit = MUTATIONS[name](graph, rng)
    if isinstance(edit, Rejection):
        return Rejection(f"{name}: {edit.reason}")
    nodes, change = edit
    child = legalise(nodes, _sources(nodes), graph.output_shape, f"{name}: {change}", limits)
    if isinstance(child, Rejection):
        return Rejection(f"{name}: {child.reason}")
    if child.operator.text == graph.text:
        return Rejection(f"{name}: {change} means the same")
    return child


def _sources(nodes: Sequence[Node]) -> list[int | None]:
    """For each weight leaf which of the parent's it is: no edit changes their order."""
    position = count()
    return [None if node is NEW else next(position) for node in nodes if node.op == WEIGHT]


def _replace_instruction(graph: OperatorGraph, rng: np.random.Generator) -> Edit | Rejection:
    i = _pick(_instructions(graph), rng)
    kinds = INSTRUCTIONS[graph.nodes[i].op].arguments
    return _with_another(graph, i, [op for op, row in INSTRUCTIONS.items() if row.arguments == kinds], rng)


def _change_aggregation(graph: OperatorGraph, rng: np.random.Generator) -> Edit | Rejection:
    places = [i for i in _instructions(graph) if INSTRUCTIONS[graph.nodes[i].op].aggregation]
    if not places:
        return Rejection("no aggregation")
    return _with_another(graph, _pick(places, rng), [op for op, row in INSTRUCTIONS.items() if row.aggregation], rng)


def _add_node(graph: OperatorGraph, rng: np.random.Generator) -> Edit | Rejection:
    features = [k for k, value in enumerate(graph.types) if value.kind is Kind.FEATURE]
    i = _pick(features, rng)
    joined = _pick([k for k in features if k <= i], rng)
    fitting = _fitting(INSTRUCTIONS, (graph.types[i].shape, graph.types[joined].shape), {}, rng)
    op, settings = _pick(fitting, rng)
    kinds = INSTRUCTIONS[op].arguments
    leaves = [NEW] * kinds.count(Kind.WEIGHT)
    added = i + 1 + len(leaves)
    after = [
        replace(node, args=tuple(added if a == i else a + added - i if a > i else a for a in node.args))
        for node in graph.nodes[i + 1 :]
    ]
    node = Node(op, (*(i, joined)[: kinds.count(Kind.FEATURE)], *range(i + 1, added)), settings)
    return [*graph.nodes[: i + 1], *leaves, node, *after], f"{op} after v{i}"


def _delete_node(graph: OperatorGraph, rng: np.random.Generator) -> Edit | Rejection:
    i = _pick(_instructions(graph), rng)
    substitute = graph.nodes[i].args[0]
    if i == len(graph.nodes) - 1:
        return list(graph.nodes[: substitute + 1]), f"v{i} ({graph.nodes[i].op})"
    nodes = [replace(node, args=tuple(substitute if a == i else a for a in node.args)) for node in graph.nodes]
    return nodes, f"v{i} ({graph.nodes[i].op})"


def _change_hyperparameter(graph: OperatorGraph, rng: np.random.Generator) -> Edit | Rejection:
    places = [
        (i, name)
        for i in _instructions(graph)
        for name in INSTRUCTIONS[graph.nodes[i].op].hyperparameters
        if name != "padding"  # follows kernel and dilation
    ]
    if not places:
        return Rejection("no hyperparameter")
    i, name = _pick(places, rng)
    node = graph.nodes[i]
    old = dict(node.hyper)[name]
    value = _pick([v for v in INSTRUCTIONS[node.op].hyperparameters[name] if v != old], rng)
    hyper = _aligned(dict(node.hyper), dict(node.hyper) | {name: value})
    if isinstance(hyper, Rejection):
        return hyper
    nodes = list(graph.nodes)
    nodes[i] = replace(node, hyper=tuple(sorted(hyper.items())))
    return nodes, f"{name} of v{i} {old} -> {value}"


MUTATIONS: dict[str, Mutation] = {
    "replace instruction": _replace_instruction,
    "change aggregation": _change_aggregation,
    "add node": _add_node,
    "delete node": _delete_node,
    "change hyperparameter": _change_hyperparameter,
}


def _pick(choices: Sequence[T], rng: np.random.Generator) -> T:
    return choices[int(rng.integers(len(choices)))]


def _instructions(graph: OperatorGraph) -> list[int]:
    return [
        i
        for i, (node, value) in enumerate(zip(graph.nodes, graph.types, strict=True))
        if node.op not in LEAVES and value.kind is Kind.FEATURE
    ]


def _with_another(graph: OperatorGraph, i: int, ops: Sequence[str], rng: np.random.Generator) -> Edit | Rejection:
    """Give node `i` another of the instructions `ops`, with its features and as many of its weights; settings stay."""
    node = graph.nodes[i]
    features = tuple(graph.types[a].shape for a in node.args if graph.types[a].kind is Kind.FEATURE)
    alike = [op for op in ops if INSTRUCTIONS[op].arguments.count(Kind.FEATURE) == len(features) and op != node.op]
    fitting = _fitting(alike, features, dict(node.hyper), rng)
    if not fitting:
        return Rejection(f"nothing else takes the arguments of {node.op}")
    op, settings = _pick(fitting, rng)
    kept = node.args[: len(INSTRUCTIONS[op].arguments)]
    leaves = [NEW] * (len(INSTRUCTIONS[op].arguments) - len(kept))
    after = [
        replace(later, args=tuple(a + len(leaves) if a >= i else a for a in later.args))
        for later in graph.nodes[i + 1 :]
    ]
    replaced = Node(op, (*kept, *range(i, i + len(leaves))), settings)
    return [*graph.nodes[:i], *leaves, replaced, *after], f"v{i} {node.op} -> {op}"


def _fitting(
    ops: Iterable[str], features: tuple[Shape, ...], kept: Mapping[str, HyperValue], rng: np.random.Generator
) -> list[tuple[str, HyperItems]]:
    """Return those of `ops` that take the first, or both, of `features`, with the settings for which they do."""
    fitting = []
    for op in ops:
        row = INSTRUCTIONS[op]
        shapes = features[: row.arguments.count(Kind.FEATURE)]
        if shapes:
            fresh = _settings(op, shapes[0], rng)
            hyper = fresh | {name: value for name, value in kept.items() if name in fresh}
            if not isinstance(row.infer(shapes + row.weight_shapes(shapes, hyper), hyper), Rejection):
                fitting.append((op, tuple(sorted(hyper.items()))))
    return fitting


def _settings(op: str, shape: Shape, rng: np.random.Generator) -> dict[str, HyperValue]:
    """Settings for a new `op` that reads a value of `shape`: at random, but keeping the shape where one can."""
    legal = INSTRUCTIONS[op].hyperparameters
    hyper: dict[str, HyperValue] = {name: _pick(values, rng) for name, values in legal.items()}
    if op in ("reshape", "zero"):
        hyper["shape"] = shape
    if "channels" in hyper:
        hyper["channels"] = shape[0]
    if "groups" in hyper:
        hyper["groups"] = _pick([1, *(g for g in legal["groups"] if shape[0] % as_int(g) == 0)], rng)
    if "padding" in hyper:
        point = hyper | {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0, 0, 0)}
        aligned = _aligned(point, point | {"kernel": hyper["kernel"]})
        assert not isinstance(aligned, Rejection), "a window never reaches less far than a point"
        return aligned
    return hyper


def _aligned(before: dict[str, HyperValue], after: dict[str, HyperValue]) -> dict[str, HyperValue] | Rejection:
    """Settings `after`, with the padding that keeps shape and centre when the window's extent has changed."""
    if "padding" not in after:
        return after
    top, left, bottom, right = as_ints(before["padding"])
    grown_h, grown_w = (new - old for old, new in zip(_extent(before), _extent(after), strict=True))
    padding = (top + grown_h // 2, left + grown_w // 2, bottom + -(-grown_h // 2), right + -(-grown_w // 2))
    if min(padding) < 0:
        return Rejection("the window would need negative padding")
    return after | {"padding": padding}


def _extent(hyper: dict[str, HyperValue]) -> tuple[int, int]:
    return extent(as_ints(hyper["kernel"]), as_ints(hyper.get("dilation", (1, 1))))
