"""Fewer channels between two layers: which nodes and weights change, and which channels stay.

A *neck* is a layer whose result reaches exactly one other layer, through element-wise instructions only. Its channels
are free: nothing outside sees how many there are. Those stay that carry most: the product of the norms of a channel's
filters on both sides.

Reference: structured pruning by weight norm; Li et al., "Pruning filters for efficient ConvNets", ICLR 2017, with the
next layer's filters in the product, because a channel that nobody reads is worth nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gos_adapt.instructions import activation
from gos_adapt.operators.graph import LAYERS, WEIGHT, Node, OperatorGraph

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Array = np.ndarray[Any, Any]

PER_CHANNEL = ("channel_bias", "channel_scale")
_ELEMENTWISE = (*PER_CHANNEL, *(row.name for row in activation.ROWS if row.name != "softmax"))


@dataclass(frozen=True)
class Neck:
    """A layer whose channels may be fewer.

    Attributes:
        operator: That it is part of.
        layer: Index of the node whose result has these channels.
        between: Indices of the element-wise nodes after it.
        reader: Index of the layer that reads them.
    """

    operator: OperatorGraph
    layer: int
    between: tuple[int, ...]
    reader: int

    @property
    def channels(self) -> int:
        """How many there are."""
        return self.operator.types[self.layer].shape[0]

    def narrowed(self, channels: int) -> tuple[Node, ...]:
        """Return the operator's nodes with that many channels in the neck."""
        nodes = list(self.operator.nodes)
        layer = nodes[self.layer]
        hyper = tuple((name, channels if name == "channels" else value) for name, value in layer.hyper)
        nodes[self.layer] = replace(layer, hyper=hyper)
        for leaf, axis in self._leaves():
            shape = nodes[leaf].shape
            nodes[leaf] = replace(nodes[leaf], shape=(*shape[:axis], channels, *shape[axis + 1 :]))
        return tuple(nodes)

    def weights(self, weights: Sequence[Array], channels: int) -> tuple[Array, ...]:
        """Return the weights of `narrowed(channels)`: the channels that carry most, in their order."""
        given = dict(zip(self.operator.weights, weights, strict=True))
        axes = dict(self._leaves())
        written, read = (self.operator.nodes[i].args[1] for i in (self.layer, self.reader))
        importance = _norms(given[written], axes[written]) * _norms(given[read], axes[read])
        kept = np.sort(np.argsort(-importance, kind="stable")[:channels])
        return tuple(
            np.ascontiguousarray(value.take(kept, axis=axes[leaf])) if leaf in axes else value
            for leaf, value in given.items()
        )

    def _leaves(self) -> Iterator[tuple[int, int]]:
        """Weight leaves that hold the neck's channels, each with the axis on which it holds them."""
        nodes = self.operator.nodes
        convolution = nodes[self.layer].op == "cross_correlation"
        yield nodes[self.layer].args[1], 0 if convolution else 1
        for i in self.between:
            if nodes[i].op in PER_CHANNEL:
                yield nodes[i].args[1], 0
        convolution = nodes[self.reader].op == "cross_correlation"
        yield nodes[self.reader].args[1], 1 if convolution else 0


def necks(operator: OperatorGraph) -> Iterator[Neck]:
    """Yield every neck of an operator."""
    nodes = operator.nodes
    reads = Counter(a for node in nodes for a in node.args)
    reader_of = {a: i for i, node in enumerate(nodes) for a in node.args}
    for start in range(len(nodes)):
        if not _dense_layer(operator, start, reads):
            continue
        between: list[int] = []
        last = start
        while reads[last] == 1:
            last = reader_of[last]
            if nodes[last].op not in _ELEMENTWISE or any(reads[a] > 1 for a in nodes[last].args):
                break
            between.append(last)
        if last != start and nodes[last].args[0] in (start, *between) and _dense_layer(operator, last, reads):
            yield Neck(operator, start, tuple(between), last)


def _dense_layer(operator: OperatorGraph, i: int, reads: Counter[int]) -> bool:
    """Whether a node is a layer of one group with a weight leaf of its own."""
    node = operator.nodes[i]
    if node.op not in LAYERS or dict(node.hyper).get("groups", 1) != 1:
        return False
    leaf = node.args[1]
    return operator.nodes[leaf].op == WEIGHT and reads[leaf] == 1


def _norms(filters: Array, axis: int) -> Array:
    """Norm of what belongs to each position along an axis."""
    norms: Array = np.linalg.norm(np.moveaxis(filters, axis, 0).reshape(filters.shape[axis], -1), axis=1)
    return norms
