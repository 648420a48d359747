"""Write an operator one instruction at a time; weight leaves and their shapes come by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gos_adapt.errors import Rejection
from gos_adapt.instructions import INSTRUCTIONS
from gos_adapt.instructions.base import HyperValue, Kind, Shape
from gos_adapt.operators.graph import INPUT, WEIGHT, Node, OperatorGraph, infer_node, infer_types, typed

if TYPE_CHECKING:
    from gos_adapt.instructions.base import ValueType


class Builder:
    """Nodes so far. What does not fit is kept as the first `Rejection`; everything after it is ignored.

    Example:
        >>> b = Builder()
        >>> x = b.input(3, 8, 8)
        >>> y = b.apply("relu", b.bias(b.convolution(x, 16, (3, 3), padding=(1, 1, 1, 1))))
        >>> b.graph().output_shape
        (16, 8, 8)
    """

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._types: list[ValueType] = []
        self._rejection: Rejection | None = None

    def input(self, *shape: int) -> int:
        """Add an input leaf (without batch axis)."""
        return self.add(Node(INPUT, shape=shape))

    def weight(self, *shape: int) -> int:
        """Add a weight leaf."""
        return self.add(Node(WEIGHT, shape=shape))

    def apply(self, op: str, *arguments: int, **hyper: HyperValue) -> int:
        """Add an instruction; weight arguments not given become leaves of the shapes the instruction wants."""
        if self._rejection is not None:
            return -1
        instruction = INSTRUCTIONS[op]
        if len(arguments) < len(instruction.arguments):
            features = tuple(
                self._types[a].shape
                for a, kind in zip(arguments, instruction.arguments, strict=False)
                if kind is Kind.FEATURE
            )
            arguments += tuple(self.weight(*shape) for shape in instruction.weight_shapes(features, hyper))
        return self.add(Node(op, arguments, tuple(sorted(hyper.items()))))

    def convolution(
        self,
        x: int,
        channels: int,
        kernel: Shape,
        *,
        stride: Shape = (1, 1),
        padding: Shape = (0, 0, 0, 0),
        dilation: Shape = (1, 1),
        groups: int = 1,
    ) -> int:
        """Add a cross-correlation with its weight leaf."""
        return self.apply(
            "cross_correlation",
            x,
            kernel=kernel,
            channels=channels,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )

    def bias(self, x: int) -> int:
        """Add one bias a channel, with its weight leaf."""
        return self.apply("channel_bias", x)

    def shape(self, value: int) -> Shape:
        """Return the shape of a value; empty after a rejection."""
        return () if self._rejection is not None else self._types[value].shape

    def add(self, node: Node) -> int:
        """Add a node as it is; return its index."""
        if self._rejection is not None:
            return -1
        inferred = infer_node(node, self._types)
        if isinstance(inferred, Rejection):
            self._rejection = inferred
            return -1
        self._nodes.append(node)
        self._types.append(inferred)
        return len(self._nodes) - 1

    @property
    def weight_count(self) -> int:
        """How many weight leaves there are so far."""
        return sum(node.op == WEIGHT for node in self._nodes)

    def graph(self) -> OperatorGraph | Rejection:
        """Return the operator whose result is the last node, or the first thing that did not fit."""
        return self._rejection or typed(tuple(self._nodes))

    def unlimited_graph(self) -> OperatorGraph | Rejection:
        """Return it without the size limits: for `canonicalise`, which may make it smaller."""
        nodes = tuple(self._nodes)
        types = self._rejection or infer_types(nodes)
        return types if isinstance(types, Rejection) else OperatorGraph(nodes)
