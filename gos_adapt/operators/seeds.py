"""Known relatives of an operator, with weights derived from its own: where a search starts.

*Relatives* replace one node (a convolution by its low-rank form, a pool by another) wherever it stands: in a single
layer or inside a residual branch. *Shortcuts* replace a whole branch. A relative that does not fit is simply absent.

Reference: thesis 4.3.2; table 4.5 for what it found. Ours: a population starts from seeds, never from noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gos_adapt.errors import Rejection
from gos_adapt.instructions import INSTRUCTIONS, activation
from gos_adapt.operators import factors
from gos_adapt.operators.builder import Builder
from gos_adapt.operators.canonical import canonicalise
from gos_adapt.operators.graph import LAYERS, THESIS, WEIGHT, Limits, Node, OperatorGraph, feature_arguments, typed
from gos_adapt.operators.narrowing import Neck, necks
from gos_adapt.operators.relatives import RELATIVES, Relative

if TYPE_CHECKING:
    from gos_adapt.instructions.base import Shape

    Array = np.ndarray[Any, Any]
    Arrays = tuple[Array, ...]

NARROWED = (4, 3, 2, 6, 5, 1)
"""Eighths of the channels between two layers that a narrowed operator keeps; the most useful first, should time be
short: what keeps three quarters seldom saves enough, and what keeps an eighth seldom learns enough."""
Initial = Callable[[Sequence["Array"], np.random.Generator], "Arrays"]


@dataclass(frozen=True)
class Seed:
    """One operator to start from.

    Attributes:
        name: For lineages and reports, for example ``"low_rank_out 8 at v2"``.
        graph: Canonical; same inputs and output shape as the operator it may replace.
        initial: ``initial(weights, rng)``: its weights from those of the replaced operator.
        whole: Whether it is one idea for the operator as a whole, which fits other kinds of sites too; not a change of
            one node.
    """

    name: str
    graph: OperatorGraph
    initial: Initial
    whole: bool = False

    @property
    def family(self) -> str | None:
        """What whole seeds of the same idea have in common, whatever the operator and how far it goes: the first word.

        `None` for others.
        """
        return self.name.split()[0] if self.whole else None


def seeds(operator: OperatorGraph, limits: Limits = THESIS) -> tuple[Seed, ...]:
    """Return the operator itself (canonical), whatever its size, and all relatives within `limits`, each once."""
    original = _itself(operator)
    found = {original.graph.text: original}
    for seed in (*_node_seeds(operator), *_narrow_seeds(operator, limits), *_branch_seeds(operator)):
        graph = seed.graph
        if graph.output_shape == operator.output_shape and isinstance(typed(graph.nodes, limits), OperatorGraph):
            found.setdefault(graph.text, seed)
    return tuple(found.values())


def _itself(operator: OperatorGraph) -> Seed:
    return _canonical_seed("original", operator, lambda weights, _rng: tuple(weights))


def _canonical_seed(name: str, graph: OperatorGraph, initial: Initial) -> Seed:
    canonical = canonicalise(graph)

    def ordered(weights: Sequence[Array], rng: np.random.Generator) -> Arrays:
        return tuple(np.ascontiguousarray(array, np.float32) for array in canonical.weights(initial(weights, rng)))

    return Seed(name, canonical.graph, ordered)


# Relatives of one node


def _node_seeds(operator: OperatorGraph) -> Iterator[Seed]:
    for i, node in enumerate(operator.nodes):
        if node.op in RELATIVES and all(
            operator.nodes[a].op == WEIGHT for a in node.args[len(feature_arguments(node)) :]
        ):
            for relative in RELATIVES[node.op](operator.types[node.args[0]].shape, dict(node.hyper)):
                seed = _substituted(operator, i, relative)
                if isinstance(seed, Seed):
                    yield seed


def _substituted(operator: OperatorGraph, place: int, relative: Relative) -> Seed | Rejection:
    """Write `operator` again with `relative` instead of node `place`."""
    builder = Builder()
    arguments = operator.nodes[place].args
    features = feature_arguments(operator.nodes[place])
    position: list[int] = []
    sources: list[tuple[str, int]] = []  # of each weight: among the operator's own, or among the relative's
    for i, node in enumerate(operator.nodes):
        if i == place:
            before = builder.weight_count
            position.append(relative.build(builder, *(position[a] for a in features)))
            sources += [("relative", k) for k in range(builder.weight_count - before)]
        else:
            position.append(builder.add(Node(node.op, tuple(position[a] for a in node.args), node.hyper, node.shape)))
            if node.op == WEIGHT:
                sources.append(("own", operator.weights.index(i)))
    graph = builder.unlimited_graph()
    if isinstance(graph, Rejection):
        return graph
    replaced = [operator.weights.index(a) for a in arguments[len(features) :]]

    def initial(weights: Sequence[Array], _rng: np.random.Generator) -> Arrays:
        derived = {"own": tuple(weights), "relative": relative.initial(*(weights[k] for k in replaced))}
        return tuple(derived[origin][k] for origin, k in sources)

    return _canonical_seed(f"{relative.name} at v{place}", graph, initial)


# Two layers and what is between them


def _narrow_seeds(operator: OperatorGraph, limits: Limits) -> Iterator[Seed]:
    for neck in necks(operator):
        for eighths in NARROWED:
            channels = neck.channels * eighths // 8
            graph = typed(neck.narrowed(channels), limits) if channels else None
            if isinstance(graph, OperatorGraph):
                name = f"narrowed to {eighths}/8 at v{neck.layer}"
                yield replace(_canonical_seed(name, graph, partial(_narrowed, neck, channels)), whole=True)


def _narrowed(neck: Neck, channels: int, weights: Sequence[Array], _rng: np.random.Generator) -> Arrays:
    return neck.weights(weights, channels)


# A whole branch


def _branch_seeds(operator: OperatorGraph) -> Iterator[Seed]:
    """Drop one side of each sum; and for two layers or more, replace everything by something small."""
    for i, node in enumerate(operator.nodes):
        if node.op == "add":
            for kept in node.args:
                yield _without_sum(operator, i, kept)
    layers = [node for node in operator.nodes if node.op in LAYERS]
    if len(layers) < 2 or len(operator.inputs) != 1:
        return
    x, y = operator.types[operator.inputs[0]].shape, operator.output_shape
    yield from _written("zero", x, lambda b, x: b.apply("zero", x, shape=y))
    (_, *size), (_, *smaller) = _with_rows(x), _with_rows(y)
    if len(size) != 2 or len(smaller) != 2 or any(n % m for n, m in zip(size, smaller, strict=True)):
        return
    stride = (size[0] // smaller[0], size[1] // smaller[1])
    for seed in _small_branches(operator, layers, stride):
        yield replace(seed, whole=True)


def _small_branches(operator: OperatorGraph, layers: Sequence[Node], stride: Shape) -> Iterator[Seed]:
    x, y = operator.types[operator.inputs[0]].shape, operator.output_shape
    yield from _written("shortcut", x, _on_map(lambda b, v: _shortcut(b, v, stride, y[0] - x[0])))
    tail = _final_activation(operator)
    for name, layer in (("first", layers[0]), ("last", layers[-1])):
        if layer.op == "cross_correlation":
            yield from _single_convolution(f"{name}_convolution", operator, layer, stride, tail)
    inner = max(1, min(x[0], y[0]) // 4)
    bottleneck = _on_map(lambda b, x: _bottleneck(b, x, inner, y[0], stride))
    yield from _written("bottleneck", x, lambda b, x: tail(b, bottleneck(b, x)))


def _without_sum(operator: OperatorGraph, place: int, kept: int) -> Seed:
    nodes = [*operator.nodes]
    nodes[place] = Node("identity", (kept,))
    return _canonical_seed(
        f"only v{kept} of the sum v{place}", OperatorGraph(tuple(nodes)), lambda weights, _rng: tuple(weights)
    )


def _written(name: str, x: Shape, write: Callable[[Builder, int], int]) -> Iterator[Seed]:
    """Yield the operator that `write` writes, if it fits: filters drawn, biases zero."""
    b = Builder()
    write(b, b.input(*x))
    graph = b.unlimited_graph()
    if isinstance(graph, OperatorGraph):
        yield _canonical_seed(name, graph, lambda _weights, rng: _drawn(graph.weight_shapes, rng))


def _with_rows(shape: Shape) -> Shape:
    """Return the shape of a map, one row for ``(c, w)``."""
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


def _on_map(write: Callable[[Builder, int], int]) -> Callable[[Builder, int], int]:
    """Return `write` between reshapes where what it reads is ``(c, w)``: it is given a map, and gives one."""

    def written(b: Builder, x: int) -> int:
        if len(b.shape(x)) != 2:
            return write(b, x)
        y = write(b, b.apply("reshape", x, shape=_with_rows(b.shape(x))))
        return b.apply("reshape", y, shape=(*b.shape(y)[:1], *b.shape(y)[2:]))

    return written


def _drawn(shapes: tuple[Shape, ...], rng: np.random.Generator) -> Arrays:
    return tuple(np.zeros(s, np.float32) if len(s) == 1 else factors.he_normal(s, rng) for s in shapes)


def _shortcut(b: Builder, x: int, stride: Shape, more_channels: int) -> int:
    """Identity where shapes allow it, else every `stride`-th element, channels cut or filled with zeros."""
    x = b.apply("subsample", x, stride=stride)
    if more_channels < 0:
        return b.apply("channel_slice", x, start=0, stop=b.shape(x)[0] + more_channels)
    return b.apply("pad_channels", x, before=0, after=more_channels)


def _single_convolution(
    name: str, operator: OperatorGraph, layer: Node, stride: Shape, tail: Callable[[Builder, int], int]
) -> Iterator[Seed]:
    """One layer of the branch, with the branch's channels and stride; its own filters where they have the shape."""
    hyper = dict(layer.hyper) | {"channels": operator.output_shape[0], "stride": stride}
    own = operator.weights.index(layer.args[1]) if layer.args[1] in operator.weights else None
    x = operator.types[operator.inputs[0]].shape
    convolution = _on_map(lambda b, x: b.bias(b.apply("cross_correlation", x, **hyper)))
    for seed in _written(name, x, lambda b, x: tail(b, convolution(b, x))):
        if own is None or seed.graph.weight_shapes[0] != operator.weight_shapes[own]:
            yield seed
            continue

        def initial(weights: Sequence[Array], rng: np.random.Generator, seed: Seed = seed, own: int = own) -> Arrays:
            return (weights[own], *seed.initial(weights, rng)[1:])

        yield Seed(name, seed.graph, initial)


def _bottleneck(b: Builder, x: int, inner: int, channels: int, stride: Shape) -> int:
    narrow = b.apply("relu", b.bias(b.convolution(x, inner, (1, 1))))
    around = tuple(int(size > 1) for size in b.shape(x)[1:])  # a map of one row is a 1-D one
    kernel, padding = tuple(1 + 2 * n for n in around), around * 2
    wide = b.apply("relu", b.bias(b.convolution(narrow, inner, kernel, stride=stride, padding=padding)))
    return b.bias(b.convolution(wide, channels, (1, 1)))


def _final_activation(operator: OperatorGraph) -> Callable[[Builder, int], int]:
    last = operator.nodes[-1]
    if INSTRUCTIONS[last.op] not in activation.ROWS:
        return lambda _b, x: x
    return lambda b, x: b.apply(last.op, x, **dict(last.hyper))
