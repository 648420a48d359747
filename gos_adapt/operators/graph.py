"""The operator: a typed, topologically ordered DAG of instructions.

Identity is the canonical text (`OperatorGraph.text` after `operators.canonical.canonicalise`). Weights are not part of
an operator: they travel beside it as a tuple of arrays, one per weight leaf, in node order.

Reference: thesis 4.3.2. Deviation: hyperparameters are attributes of their instruction, not nodes, and do not count
towards N and E; the edge to the operator's consumer does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

from gos_adapt.errors import Rejection
from gos_adapt.instructions import INSTRUCTIONS
from gos_adapt.instructions.base import HyperValue, Kind, Shape, ValueType
from gos_adapt.instructions.rules import MAX_ELEMENTS
from gos_adapt.instructions.schedule_hints import HINTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_NODES = 20
MAX_EDGES = 25
INPUT = "input"
WEIGHT = "weight"
LEAVES = (INPUT, WEIGHT)
LAYERS = frozenset({"cross_correlation", "matrix_product"})
"""What a network's layers are: products of all channels with weights of their own. Each starts a kernel."""


@dataclass(frozen=True)
class Limits:
    """How large an operator may be; the thesis' values by default (figure 4.12).

    Attributes:
        nodes: N at most.
        edges: E at most.
    """

    nodes: int = MAX_NODES
    edges: int = MAX_EDGES


THESIS = Limits()


@dataclass(frozen=True)
class Node:
    """One value: a leaf (`input`, `weight`, with its shape) or an instruction applied to earlier nodes.

    Attributes:
        op: `INPUT`, `WEIGHT` or an instruction's name.
        args: Indices of the argument nodes, all smaller than this node's own.
        hyper: Hyperparameters as sorted (name, value) pairs.
        shape: Of a leaf; empty for an instruction (it is inferred).
    """

    op: str
    args: tuple[int, ...] = ()
    hyper: tuple[tuple[str, HyperValue], ...] = ()
    shape: Shape = ()


@dataclass(frozen=True)
class OperatorGraph:
    """Nodes in topological order; the last one is the result. Build with `typed`, which never raises.

    Raises:
        ValueError: from the constructor, when the nodes do not type-check (a bug: use `typed`).
    """

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        self.types  # noqa: B018  (type-checks)

    @cached_property
    def types(self) -> tuple[ValueType, ...]:
        """Kind and shape of every node."""
        types = infer_types(self.nodes)
        if isinstance(types, Rejection):
            raise ValueError(f"ill-typed operator: {types.reason}")
        return types

    @property
    def inputs(self) -> tuple[int, ...]:
        """Indices of the input leaves, in node order."""
        return tuple(i for i, node in enumerate(self.nodes) if node.op == INPUT)

    @property
    def weights(self) -> tuple[int, ...]:
        """Indices of the weight leaves, in node order: the order of the weight tuple beside an operator."""
        return tuple(i for i, node in enumerate(self.nodes) if node.op == WEIGHT)

    @property
    def weight_shapes(self) -> tuple[Shape, ...]:
        """Shapes of the weight leaves, in node order."""
        return tuple(self.nodes[i].shape for i in self.weights)

    @property
    def output_shape(self) -> Shape:
        """Shape of the result, without batch axis."""
        return self.types[-1].shape

    @property
    def edge_count(self) -> int:
        """E: every argument of every node, and the edge to the consumer."""
        return sum(len(node.args) for node in self.nodes) + 1

    @cached_property
    def text(self) -> str:
        """One line a node; the inverse is `operators.text.parse`."""
        return "\n".join(self._lines())

    @cached_property
    def key(self) -> str:
        """Content hash of the text: short name of this operator in stores and files (canonicalise first)."""
        return sha256(self.text.encode()).hexdigest()[:16]

    @property
    def parameters(self) -> int:
        """Stored numbers: what all weight leaves hold."""
        return sum(math.prod(shape) for shape in self.weight_shapes)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one sample; instructions on weights alone are folded away and count nothing."""
        return sum(
            INSTRUCTIONS[node.op].macs(self._argument_shapes(node), self.types[i].shape, dict(node.hyper))
            for i, node in enumerate(self.nodes)
            if node.op not in LEAVES and self.types[i].kind is Kind.FEATURE
        )

    @property
    def traffic_bytes(self) -> int:
        """Bytes read and written for one sample if every instruction went through memory (float32); hints are none."""
        return 4 * sum(
            math.prod(self.types[i].shape) + sum(math.prod(shape) for shape in self._argument_shapes(node))
            for i, node in enumerate(self.nodes)
            if node.op not in LEAVES and node.op not in HINTS and self.types[i].kind is Kind.FEATURE
        )

    def _argument_shapes(self, node: Node) -> tuple[Shape, ...]:
        return tuple(self.types[a].shape for a in node.args)

    def _lines(self) -> Iterator[str]:
        for i, node in enumerate(self.nodes):
            if node.op in LEAVES:
                yield f"v{i} = {node.op} {'x'.join(map(str, node.shape))}"
            else:
                words = [f"v{a}" for a in node.args] + [f"{name}={_hyper_text(value)}" for name, value in node.hyper]
                yield f"v{i} = {node.op}({', '.join(words)})"


def typed(nodes: tuple[Node, ...], limits: Limits = THESIS) -> OperatorGraph | Rejection:
    """Type-check `nodes` and the size limits; the way to build an operator from anything uncertain."""
    if not 1 < len(nodes) <= limits.nodes:
        return Rejection(f"{len(nodes)} nodes, must be 2 to {limits.nodes}")
    types = infer_types(nodes)
    if isinstance(types, Rejection):
        return types
    graph = OperatorGraph(nodes)
    if not 1 < graph.edge_count <= limits.edges:
        return Rejection(f"{graph.edge_count} edges, must be 2 to {limits.edges}")
    return graph


def infer_types(nodes: tuple[Node, ...]) -> tuple[ValueType, ...] | Rejection:
    """Kind and shape of every node, or the first reason why there is none."""
    types: list[ValueType] = []
    for node in nodes:
        inferred = infer_node(node, types)
        if isinstance(inferred, Rejection):
            return inferred
        types.append(inferred)
    if not types or types[-1].kind is not Kind.FEATURE:
        return Rejection("the result must be a feature")
    return tuple(types)


def feature_arguments(node: Node) -> tuple[int, ...]:
    """The arguments of an instruction that are features; weights come after them."""
    return node.args[: INSTRUCTIONS[node.op].arguments.count(Kind.FEATURE)]


def convolution_biases(graph: OperatorGraph) -> dict[int, int]:
    """Convolution -> the bias node that alone reads it, if it adds a leaf: one function for both in ONNX and torch."""
    uses = [a for node in graph.nodes for a in node.args]
    return {
        node.args[0]: i
        for i, node in enumerate(graph.nodes)
        if node.op == "channel_bias"
        and graph.nodes[node.args[0]].op == "cross_correlation"
        and graph.nodes[node.args[1]].op == WEIGHT
        and uses.count(node.args[0]) == 1
    }


def infer_node(node: Node, types: Sequence[ValueType]) -> ValueType | Rejection:
    """Kind and shape of the node that comes after nodes of these types."""
    inferred = _infer_leaf(node) if node.op in LEAVES else _infer_instruction(node, types)
    return Rejection(f"v{len(types)} = {node.op}: {inferred.reason}") if isinstance(inferred, Rejection) else inferred


def _infer_leaf(node: Node) -> ValueType | Rejection:
    if node.args or node.hyper:
        return Rejection("a leaf has neither arguments nor hyperparameters")
    if not node.shape or min(node.shape) < 1 or math.prod(node.shape) > MAX_ELEMENTS:
        return Rejection(f"a leaf needs positive dimensions and at most {MAX_ELEMENTS} elements, got {node.shape}")
    return ValueType(Kind.FEATURE if node.op == INPUT else Kind.WEIGHT, node.shape)


def _infer_instruction(node: Node, types: Sequence[ValueType]) -> ValueType | Rejection:
    instruction = INSTRUCTIONS.get(node.op)
    if instruction is None:
        return Rejection("no such instruction")
    if any(not 0 <= a < len(types) for a in node.args):
        return Rejection("uses a node that is not before it")
    names = [name for name, _ in node.hyper]
    if node.shape or names != sorted(set(names)):
        return Rejection("an instruction has no shape of its own, and its hyperparameters are sorted and distinct")
    arguments = tuple(types[a] for a in node.args)
    kinds = tuple(argument.kind for argument in arguments)
    if kinds != instruction.arguments:
        return Rejection(f"takes {_kind_text(instruction.arguments)}, got {_kind_text(kinds)}")
    shape = instruction.infer(tuple(argument.shape for argument in arguments), dict(node.hyper))
    return shape if isinstance(shape, Rejection) else ValueType(instruction.result, shape)


def _kind_text(kinds: tuple[Kind, ...]) -> str:
    return f"({', '.join(kind.value for kind in kinds)})"


def _hyper_text(value: HyperValue) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return "x".join(map(str, value)) + ("x" if len(value) == 1 else "")  # 64x is (64,), 64 is an integer
