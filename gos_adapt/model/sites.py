"""The places in a model that an operator can replace.

An *attention* is everything from tokens to tokens around a softmax over products of features (`read_attention`).
A *layer* is a convolution, a product with a constant matrix or a pooling, with the bias and the activation that follow.
A *branch* is an addition of two features with everything back to the one tensor both are computed from: a residual
block, its shortcut and the activation after it included, so that dropping the whole branch is a legal replacement.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import onnx
from onnx import numpy_helper

from gos_adapt.errors import Rejection
from gos_adapt.model.model import Model, Site
from gos_adapt.model.read_attention import AttentionNodes, read_attention
from gos_adapt.model.read_operator import Tensors, read_operator

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gos_adapt.instructions.base import Shape
    from gos_adapt.operators.graph import OperatorGraph

LAYERS = {
    "Conv": "conv",
    "Gemm": "linear",
    "MatMul": "linear",
    "MaxPool": "pool",
    "AveragePool": "pool",
    "GlobalAveragePool": "pool",
    "ReduceMean": "pool",
}
ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh")
MAX_BRANCH_NODES = 10
MAX_ATTENTION_NODES = 48
REARRANGING = ("Reshape", "Transpose")
AFFINE = (*REARRANGING, "Split", "Slice", "Gather", "Squeeze", "Unsqueeze", "Mul", "Div", "Add", "MatMul", "Gemm")
"""What exporters put between tokens and queries; a product or sum only with a constant."""


def find_sites(model: Model) -> tuple[Site, ...]:
    """Find every layer and branch of the canonical graph that an operator within the limits expresses.

    Sites may overlap (a branch holds layers): see `overlaps`. Their order is that of their outputs in the graph.
    """
    graph = _Graph(model.proto.graph)
    sites = []
    for node in graph.nodes:
        for kind, covered in (("", graph.layer(node)), ("branch", graph.branch(node))):
            source = graph.single_source(covered)
            if source is None:
                continue
            read = read_operator(covered, source, graph.tensors)
            if not isinstance(read, Rejection):
                operator, weights = read
                output = covered[-1].output[0]
                names = tuple(inner.output[0] for inner in covered)
                sites.append(
                    Site(output, kind or _layer_kind(node, operator), names, source, output, operator, weights)
                )
    sites += _attentions(graph)
    position = {name: i for i, node in enumerate(graph.nodes) for name in node.output}
    return tuple(sorted(sites, key=lambda site: position[site.output]))


def feature_shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Shapes without batch axis of the float tensors that a graph computes or reads, where they are static."""
    return {
        value.name: shape
        for value in (*graph.input, *graph.value_info, *graph.output)
        if (shape := _feature_shape(value)) is not None
    }


def _attentions(graph: _Graph) -> Iterator[Site]:
    for node in graph.nodes:
        found = graph.attention(node)
        if found is None:
            continue
        covered, names = found
        read = read_attention(covered, names, graph.tensors)
        if not isinstance(read, Rejection):
            operator, weights = read
            nodes = tuple(inner.output[0] for inner in covered)
            yield Site(names.result, "attention", nodes, names.source, names.result, operator, weights)


def overlaps(first: Site, second: Site) -> bool:
    """Whether two sites share a node, so that only one of them can be replaced."""
    return not set(first.nodes).isdisjoint(second.nodes)


def _layer_kind(node: onnx.NodeProto, operator: OperatorGraph) -> str:
    """The op's kind; a convolution is called depthwise or pointwise where it is one."""
    hyper = next((dict(inner.hyper) for inner in operator.nodes if inner.op == "cross_correlation"), None)
    if hyper is None:
        return LAYERS[node.op_type]
    channels = operator.types[operator.inputs[0]].shape[0]
    if hyper["groups"] == channels == hyper["channels"] and channels > 1:
        return "depthwise"
    return "pointwise" if hyper["kernel"] == (1, 1) and hyper["groups"] == 1 else "conv"


@dataclass(frozen=True)
class _Graph:
    """Who computes and who reads each tensor of a canonical graph."""

    proto: onnx.GraphProto

    @cached_property
    def nodes(self) -> tuple[onnx.NodeProto, ...]:
        return tuple(self.proto.node)

    @cached_property
    def tensors(self) -> Tensors:
        return Tensors(
            {initializer.name: numpy_helper.to_array(initializer) for initializer in self.proto.initializer},
            feature_shapes(self.proto),
        )

    @cached_property
    def producers(self) -> Mapping[str, int]:
        """Index of the node that computes a tensor."""
        return {name: i for i, node in enumerate(self.nodes) for name in node.output}

    @cached_property
    def reads(self) -> Counter[str]:
        """How often each tensor is read; the caller's reading of an output counts."""
        inner = Counter(name for node in self.nodes for name in node.input)
        return inner + Counter(value.name for value in self.proto.output)

    @cached_property
    def successors(self) -> Mapping[str, onnx.NodeProto]:
        """A node that reads a tensor: the only one where `reads` says 1 and the tensor is no output."""
        return {name: node for node in self.nodes for name in node.input}

    def layer(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The layer that starts at this node; empty if none does."""
        if node.op_type not in LAYERS:
            return []
        covered = [node]
        if node.op_type == "MatMul":
            covered += self._follow(covered[-1], ("Add",))
        if LAYERS[node.op_type] == "pool":
            while reshaping := self._follow(covered[-1], ("Flatten", "Reshape")):
                covered += reshaping
            return covered
        return covered + self._follow(covered[-1], ACTIVATIONS)

    def branch(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The block that ends in this addition of two features; empty if it has no single source nearby."""
        if node.op_type != "Add" or len(self._features(node)) != 2:
            return []
        covered = {self.producers[node.output[0]]: node}
        frontier = self._features(node)
        # Take in what was computed last until one tensor is left: the latest that the whole block depends on.
        while len(frontier) > 1 and len(covered) <= MAX_BRANCH_NODES:
            last = max(frontier, key=lambda name: self.producers.get(name, -1))
            if last not in self.producers:
                return []
            producer = self.nodes[self.producers[last]]
            covered[self.producers[last]] = producer
            frontier = (frontier - set(producer.output)) | self._features(producer)
        return [covered[i] for i in sorted(covered)] + self._follow(node, ACTIVATIONS)

    def attention(self, softmax: onnx.NodeProto) -> tuple[list[onnx.NodeProto], AttentionNodes] | None:
        """The self-attention around this softmax: its nodes, and where its parts are; None if there is none."""
        mixing = self._only_reader(softmax.output[0]) if softmax.op_type == "Softmax" else None
        if mixing is None or mixing.op_type != "MatMul" or mixing.input[0] != softmax.output[0]:
            return None
        matching = self._back(softmax.input[0], ("Mul", "Div"))
        if matching is None or matching.op_type != "MatMul" or len(self._features(matching)) != 2:
            return None
        last = mixing
        while after := self._follow(last, REARRANGING):
            last = after[0]
        for op_types in (("MatMul", "Gemm"), ("Add",), REARRANGING):
            last = (self._follow(last, op_types) or [last])[0]
        covered = self._back_to_tokens(last, softmax)
        source = self.single_source(covered)
        if source is None:
            return None
        queries, keys = matching.input
        names = AttentionNodes(
            source, queries, keys, softmax.input[0], mixing.input[1], mixing.output[0], last.output[0]
        )
        return covered, names

    def _back_to_tokens(self, last: onnx.NodeProto, softmax: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Everything back to the one tensor of tokens that queries, keys and values are projections of."""
        covered = {self.producers[last.output[0]]: last}
        frontier = self._features(last)
        projected = 0
        while len(covered) <= MAX_ATTENTION_NODES and not frontier.isdisjoint(self.producers):
            latest = max(frontier, key=lambda name: self.producers.get(name, -1))
            node = self.nodes[self.producers[latest]]
            within = self.producers[softmax.output[0]] not in covered or len(frontier) > 1
            constant = len(self._features(node)) == 1
            if not within and (projected or node.op_type not in AFFINE or not constant):
                break
            before_softmax = self.producers[latest] < self.producers[softmax.output[0]]
            projected += before_softmax and constant and node.op_type in ("MatMul", "Gemm")
            covered[self.producers[latest]] = node
            frontier = (frontier - set(node.output)) | self._features(node)
        return [covered[i] for i in sorted(covered)]

    def _back(self, name: str, op_types: Sequence[str]) -> onnx.NodeProto | None:
        """The node that computes a tensor, nodes of these op types with a constant left out."""
        while name in self.producers:
            node = self.nodes[self.producers[name]]
            if node.op_type not in op_types or len(self._features(node)) != 1:
                return node
            (name,) = self._features(node)
        return None

    def _only_reader(self, name: str) -> onnx.NodeProto | None:
        return self.successors.get(name) if self.reads[name] == 1 else None

    def single_source(self, covered: Sequence[onnx.NodeProto]) -> str | None:
        """The one feature these nodes read from outside, provided only their last output is read outside."""
        produced = {name for node in covered for name in node.output}
        inputs = Counter(name for node in covered for name in node.input)
        sources = {name for node in covered for name in self._features(node)} - produced
        closed = all(inputs[name] == self.reads[name] for node in covered[:-1] for name in node.output)
        return sources.pop() if closed and len(sources) == 1 else None

    def _features(self, node: onnx.NodeProto) -> set[str]:
        return {name for name in node.input if name and name not in self.tensors.constants}

    def _follow(self, node: onnx.NodeProto, op_types: Sequence[str]) -> list[onnx.NodeProto]:
        """The node's only reader if it is of these op types and reads nothing else but constants."""
        output = node.output[0]
        reader = self.successors.get(output) if self.reads[output] == 1 else None
        return [reader] if reader and reader.op_type in op_types and self._features(reader) == {output} else []


def _feature_shape(value: onnx.ValueInfoProto) -> Shape | None:
    """Shape without batch axis of a float tensor; None if it is not one, or not static."""
    tensor = value.type.tensor_type
    sizes = tuple(axis.dim_value for axis in tensor.shape.dim)[1:]
    return sizes if tensor.elem_type == onnx.TensorProto.FLOAT and sizes and min(sizes) > 0 else None
