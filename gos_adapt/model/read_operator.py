"""What ONNX nodes compute, as an operator: the inverse of the instructions' ONNX forms.

`READERS` maps an op type to a function that appends the node's instructions to a `_Draft`; a node that no instruction
expresses (a dilated pooling, an addition that broadcasts over more than channels) is a `Rejection`, not an error.

A 1-D convolution or pooling is a 2-D one whose maps have one row. Nodes with such windows are read as if all their maps
``(c, w)`` were ``(c, 1, w)``; the operator reshapes its input, and its result before the final activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from gos_adapt.errors import Rejection
from gos_adapt.instructions import activation
from gos_adapt.instructions.rules import as_ints
from gos_adapt.operators.canonical import canonicalise
from gos_adapt.operators.graph import INPUT, WEIGHT, Node, OperatorGraph, typed

if TYPE_CHECKING:
    from gos_adapt.instructions.base import HyperValue, Shape
    from gos_adapt.model.model import Array


@dataclass(frozen=True)
class Tensors:
    """What is known of a graph's tensors.

    Attributes:
        constants: Initialisers by name.
        shapes: Shapes of the float features by name, without batch axis.
    """

    constants: Mapping[str, Array]
    shapes: Mapping[str, Shape]

    def with_one_row(self, names: Iterable[str]) -> Tensors:
        """Return the same, but for the maps ``(c, w)`` among `names`, which are ``(c, 1, w)``."""
        maps = {name: self.shapes[name] for name in names if len(self.shapes.get(name, ())) == 2}
        return replace(self, shapes={**self.shapes, **{name: (c, 1, w) for name, (c, w) in maps.items()}})


def read_operator(
    nodes: Sequence[onnx.NodeProto], source: str, tensors: Tensors
) -> tuple[OperatorGraph, tuple[Array, ...]] | Rejection:
    """Read nodes that lead from the feature `source` to the last node's output.

    Args:
        nodes: In topological order; their only feature from outside is `source`.
        source: Name of a feature tensor.
        tensors: Of the graph the nodes are from.

    Returns:
        The canonical operator and its weights, or why there is none.
    """
    if source not in tensors.shapes:
        return Rejection(f"{source} is not a float tensor of static shape")
    draft = _Draft(tensors, one_row=_has_one_axis(nodes, tensors))
    draft.values[source] = draft.append(Node(INPUT, shape=tensors.shapes[source]))
    if draft.one_row:
        names = {name for node in nodes for name in (*node.input, *node.output)}
        if any(len(tensors.shapes.get(name, ())) == 3 for name in names):
            return Rejection("maps of one and of two axes together")
        draft.tensors = tensors.with_one_row(names)
        if draft.tensors.shapes[source] != tensors.shapes[source]:
            draft.values[source] = draft.apply("reshape", 0, shape=draft.tensors.shapes[source])
    for node in nodes:
        result = _read_node(draft, node)
        if isinstance(result, Rejection):
            return Rejection(f"{node.op_type} {node.output[0]}: {result.reason}")
        draft.values[node.output[0]] = result
    if draft.one_row:
        draft.reshape_result(tensors.shapes.get(nodes[-1].output[0], ()))
    graph = typed(tuple(draft.nodes))
    if isinstance(graph, Rejection):
        return graph
    if graph.output_shape != tensors.shapes.get(nodes[-1].output[0]):
        return Rejection(f"reads as {graph.output_shape}, is {tensors.shapes.get(nodes[-1].output[0])}")
    canonical = canonicalise(graph)
    return canonical.graph, canonical.weights(draft.weights)


def _has_one_axis(nodes: Sequence[onnx.NodeProto], tensors: Tensors) -> bool:
    return any(node.op_type in _SLIDING and len(tensors.shapes.get(node.input[0], ())) == 2 for node in nodes)


def _read_node(draft: _Draft, node: onnx.NodeProto) -> int | Rejection:
    if node.op_type not in READERS:
        return Rejection("no instruction for it")
    if draft.values.keys().isdisjoint(node.input[:1] if node.op_type not in _EITHER_SIDE else node.input):
        return Rejection("its first input is a constant")
    return READERS[node.op_type](draft, node)


@dataclass
class _Draft:
    """An operator being read.

    Attributes:
        tensors: As they are read.
        one_row: Whether maps ``(c, w)`` are read as ``(c, 1, w)``.
        values: Index of the node that computes a tensor, by the tensor's name.
    """

    tensors: Tensors
    one_row: bool = False
    nodes: list[Node] = field(default_factory=list)
    weights: list[Array] = field(default_factory=list)
    values: dict[str, int] = field(default_factory=dict)

    def append(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def apply(self, op: str, *arguments: int, **hyper: HyperValue) -> int:
        return self.append(Node(op, arguments, tuple(sorted(hyper.items()))))

    def reshape_result(self, shape: Shape) -> None:
        """Give the last value another shape, before its activation: a fit looks for that at the end."""
        last = self.nodes.pop() if self.nodes[-1].op in _ELEMENTWISE else None
        result = len(self.nodes) - 1 if last is None else last.args[0]
        result = self.apply("reshape", result, shape=shape)
        if last is not None:
            self.append(replace(last, args=(result,)))

    def axes(self, node: onnx.NodeProto, axes: Iterable[int]) -> list[int]:
        """Return axes of the node's first input, the batch's is 0, as they are read: not negative, and with the row."""
        rank = 1 + len(self.shape(node))
        if not self.one_row or rank < 4:
            return [axis % rank for axis in axes]
        return [axis + (axis == 2) for axis in (axis % (rank - 1) for axis in axes)]

    def weight(self, value: Array) -> int:
        self.weights.append(np.ascontiguousarray(value, np.float32))
        return self.append(Node(WEIGHT, shape=value.shape))

    def feature(self, node: onnx.NodeProto, position: int = 0) -> int:
        return self.values[node.input[position]]

    def constant(self, node: onnx.NodeProto, position: int) -> Array | None:
        """The initialiser at this input; None when it is absent or a feature."""
        return self.tensors.constants.get(node.input[position]) if position < len(node.input) else None

    def ints(self, node: onnx.NodeProto, position: int) -> list[int] | None:
        value = self.constant(node, position)
        return None if value is None else [int(v) for v in value.reshape(-1)]

    def shape(self, node: onnx.NodeProto) -> Shape:
        """Shape of the node's first input, a feature."""
        return self.tensors.shapes.get(node.input[0], ())

    def result_shape(self, node: onnx.NodeProto) -> Shape | Rejection:
        return self.tensors.shapes.get(node.output[0]) or Rejection("its output's shape is not static")


Reader = Callable[[_Draft, onnx.NodeProto], "int | Rejection"]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


# Sliding windows.


def _window(draft: _Draft, node: onnx.NodeProto, kernel: Sequence[int]) -> dict[str, HyperValue] | Rejection:
    """Kernel, stride, padding and dilation of a 2-D window, or of a 1-D one in one row; `auto_pad` resolved."""
    size, rank = draft.shape(node)[1:], len(kernel)
    attributes = _attributes(node)
    strides = attributes.get("strides", [1] * rank)
    dilations = attributes.get("dilations", [1] * rank)
    pads = attributes.get("pads", [0] * 2 * rank)
    if rank == 1 and draft.one_row:
        kernel, strides, dilations, pads = [1, *kernel], [1, *strides], [1, *dilations], [0, pads[0], 0, pads[1]]
    if len(kernel) != 2 or len(size) != 2:
        return Rejection("only 1-D and 2-D windows are operators")
    padding = tuple(pads)
    auto = attributes.get("auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        totals = [
            max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)
        ]
        less, more = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
        padding = less + more if auto == b"SAME_UPPER" else more + less
    return {"kernel": tuple(kernel), "stride": tuple(strides), "padding": padding, "dilation": tuple(dilations)}


def _convolution(draft: _Draft, node: onnx.NodeProto) -> int | Rejection:
    weight = draft.constant(node, 1)
    if weight is None:
        return Rejection("its weight is computed by the model")
    window = _window(draft, node, weight.shape[2:])
    if isinstance(window, Rejection):
        return window
    product = draft.apply(
        "cross_correlation",
        draft.feature(node),
        draft.weight(weight.reshape(*weight.shape[:2], *as_ints(window["kernel"]))),
        channels=len(weight),
        groups=_attributes(node).get("group", 1),
        **window,
    )
    bias = draft.constant(node, 2)
    return product if bias is None else draft.apply("channel_bias", product, draft.weight(bias))


def _pool(instruction: str) -> Reader:
    def read(draft: _Draft, node: onnx.NodeProto) -> int | Rejection:
        attributes = _attributes(node)
        window = _window(draft, node, attributes["kernel_shape"])
        if isinstance(window, Rejection):
            return window
        if window.pop("dilation") != (1, 1) or len(node.output) > 1:
            return Rejection("a dilated or index-returning pooling")
        if attributes.get("count_include_pad", 0) and window["padding"] != (0, 0, 0, 0):
            return Rejection("padding takes part in its average")
        return draft.apply(instruction, draft.feature(node), **window)

    return read


def _global_average_pool(draft: _Draft, node: onnx.NodeProto) -> int | Rejection:
    return draft.apply(
        "reshape", draft.apply("global_average_pool", draft.feature(node)), shape=(*draft.shape(node)[:1], 1, 1)
    )


def _reduce_mean(draft: _Draft, node: onnx.NodeProto) -> int | Rejection:
    attributes = _attributes(node)
    axes = attributes.get("axes") or draft.ints(node, 1) or []
    over = {*draft.axes(node, axes), *((2,) if draft.one_row else ())}
    if len(draft.shape(node)) != 3 or over != {2, 3}:
        return Rejection("only a mean over height and width is an operator")
    if attributes.get("keepdims", 1):
        return _global_average_pool(draft, node)
    return draft.apply("global_average_pool", draft.feature(node))


# Products, sums and normalisation.


def _gemm(draft: _Draft, node: onnx.NodeProto) -> int | Rejection:
    attributes = _attributes(node)
    weight, bias = draft.constant(node, 1), draft.constant(node, 2)
    if weight is None or attributes.get("transA", 0):
        return Rejection("its weight is computed by the model, or its feature transposed")
    weight = attributes.get("alpha", 1.0) * (weight.T if attributes.get("transB", 0) else weight)
    product = draft.apply("matrix_product", draft.feature(node), draft.weight(weight), channels=weight.shape[1])
    if bias is None:
        return product
    spread = np.broadcast_to(attributes.get("beta", 1.0) * bias.reshape(-1), weight.shape[1:])
    return draft.apply("channel_bias", product, draft.weight(spread))


def _matmul(draft: _Draft, node: onnx.NodeProto) -> int | Rejection:
    weight = draft.constant(node, 1)
    if weight is None or weight.ndim != 2:
        return Rejection("only the product of a feature and a constant matrix is an operator")
    return draft.apply("matrix_product", draft.feature(node), draft.weight(weight), channels=weight.shape[1])


def _binary(features: str, per_channel: str | None) -> Reader:
    """Two features, or one and a constant that differs along the channels only."""

    def read(draft: _Draft, node: onnx.NodeProto) -> int | Rejection:
        left, right = node.input
        if left in draft.values and right in draft.values:
            return draft.apply(features, draft.values[left], draft.values[right])
        feature, constant = (left, right) if left in draft.values else (right, left)
        value, shape = draft.tensors.constants.get(constant), draft.tensors.shapes.get(feature, ())
        if per_channel is None or value is None or not shape:
            return Rejection("one operand is neither a feature nor a constant per channel")
        if draft.one_row and len(shape) == 3 and value.ndim:
            value = np.expand_dims(value, -2)
        aligned = value.reshape((1,) * (1 + len(shape) - value.ndim) + value.shape)
        if value.ndim > 1 + len(shape) or aligned.size not in (1, aligned.shape[1]):
            return Rejection(f"a constant of shape {value.shape} is not one number per channel")
        channels = np.broadcast_to(aligned.reshape(-1), shape[:1])
        return draft.apply(per_channel, draft.values[feature], draft.weight(channels))

    return read


def _batch_norm(draft: _Draft, node: onnx.NodeProto) -> int | Rejection:
    scale, bias, mean, variance = (draft.constant(node, position) for position in range(1, 5))
    if scale is None or bias is None or mean is None or variance is None:
        return Rejection("its statistics are computed by the model")
    factor = scale / np.sqrt(variance + _attributes(node).get("epsilon", 1e-5))
    scaled = draft.apply("channel_scale", draft.feature(node), draft.weight(factor))
    return draft.apply("channel_bias", scaled, draft.weight(bias - mean * factor))


# Activations.


def _activation(instruction: str) -> Reader:
    return lambda draft, node: draft.apply(instruction, draft.feature(node))


def _clip(draft: _Draft, node: onnx.NodeProto) -> int | Rejection:
    bounds = tuple(
        None if value is None else value.item() for value in (draft.constant(node, 1), draft.constant(node, 2))
    )
    if bounds == (0, 6):
        return draft.apply("relu6", draft.feature(node))
    return Rejection(f"clipping to {bounds} is no instruction")


def _softmax(draft: _Draft, node: onnx.NodeProto) -> int | Rejection:
    if draft.axes(node, [_attributes(node).get("axis", -1)]) != [1]:
        return Rejection("only a softmax over the channels is an instruction")
    return draft.apply("softmax", draft.feature(node))


def _leaky_relu(draft: _Draft, node: onnx.NodeProto) -> int | Rejection:
    # attributes are float32: 0.01 must read as the instruction's 0.01, not as 0.009999999776
    slope = float(np.format_float_positional(np.float32(_attributes(node).get("alpha", 0.01))))
    return draft.apply("leaky_relu", draft.feature(node), slope=slope)


def _hard_sigmoid(draft: _Draft, node: onnx.NodeProto) -> int | Rejection:
    attributes = _attributes(node)
    if not np.allclose((attributes.get("alpha", 0.2), attributes.get("beta", 0.5)), (1 / 6, 0.5), rtol=1e-6):
        return Rejection("only the slope 1/6 is an instruction")
    return draft.apply("hard_sigmoid", draft.feature(node))


# Movement.


def _flatten(draft: _Draft, node: onnx.NodeProto) -> int | Rejection:
    if _attributes(node).get("axis", 1) != 1:
        return Rejection("it flattens the batch axis")
    return draft.apply("flatten", draft.feature(node))


def _reshape(draft: _Draft, node: onnx.NodeProto) -> int | Rejection:
    sizes, shape = draft.ints(node, 1), draft.result_shape(node)
    if isinstance(shape, Rejection):
        return shape
    if sizes is None or sizes[0] not in (0, -1) or math.prod(shape) != math.prod(draft.shape(node)):
        return Rejection("it does not keep the batch axis")
    return draft.apply("reshape", draft.feature(node), shape=shape)


def _slice(draft: _Draft, node: onnx.NodeProto) -> int | Rejection:
    """Channels by an interval; height and width by a step from 0."""
    starts, stops, axes, steps = (draft.ints(node, position) for position in range(1, 5))
    shape = draft.shape(node)
    if starts is None or stops is None or not shape:
        return Rejection("its bounds are computed by the model")
    axes = draft.axes(node, range(len(starts)) if axes is None else axes)
    steps = [1] * len(starts) if steps is None else steps
    value, stride = draft.feature(node), [1] * len(shape)
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        if axis == 0 or step < 1:
            return Rejection("it slices the batch axis, or backwards")
        first, last, _ = slice(start, stop).indices(shape[axis - 1])
        if (first, last) == (0, shape[axis - 1]):
            stride[axis - 1] = step
        elif axis == 1 and step == 1:
            value = draft.apply("channel_slice", value, start=first, stop=last)
        else:
            return Rejection("it crops height or width")
    if stride[0] != 1 or (len(stride) != 3 and any(step != 1 for step in stride)):
        return Rejection("it takes every n-th channel")
    return value if max(stride) == 1 else draft.apply("subsample", value, stride=tuple(stride[1:]))


def _pad(draft: _Draft, node: onnx.NodeProto) -> int | Rejection:
    """Zero channels before and after."""
    amounts, fill, axes = draft.ints(node, 1), draft.constant(node, 2), draft.ints(node, 3)
    if (
        amounts is None
        or (fill is not None and fill.item() != 0)
        or _attributes(node).get("mode", b"") not in (b"", b"constant")
    ):
        return Rejection("only padding by zeros is an instruction")
    axes = draft.axes(node, range(len(amounts) // 2) if axes is None else axes)
    pads = {axis: (amounts[i], amounts[i + len(axes)]) for i, axis in enumerate(axes)}
    before, after = pads.pop(1, (0, 0))
    if any(amount for pair in pads.values() for amount in pair) or min(before, after) < 0:
        return Rejection("only padding of channels is an instruction")
    return draft.apply("pad_channels", draft.feature(node), before=before, after=after)


def _concat(draft: _Draft, node: onnx.NodeProto) -> int | Rejection:
    if _attributes(node)["axis"] != 1 or any(name not in draft.values for name in node.input):
        return Rejection("only a concatenation of features along channels is an instruction")
    value, *others = (draft.values[name] for name in node.input)
    for other in others:
        value = draft.apply("concat", value, other)
    return value


_EITHER_SIDE = ("Add", "Mul")
_SLIDING = ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool")
_ELEMENTWISE = {row.name for row in activation.ROWS} - {"softmax"}

READERS: dict[str, Reader] = {
    "Conv": _convolution,
    "MaxPool": _pool("max_pool"),
    "AveragePool": _pool("average_pool"),
    "GlobalAveragePool": _global_average_pool,
    "ReduceMean": _reduce_mean,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _binary("add", "channel_bias"),
    "Sub": _binary("subtract", None),
    "Mul": _binary("hadamard", "channel_scale"),
    "BatchNormalization": _batch_norm,
    "Relu": _activation("relu"),
    "Clip": _clip,
    "LeakyRelu": _leaky_relu,
    "Sigmoid": _activation("sigmoid"),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _activation("hard_swish"),
    "Tanh": _activation("tanh"),
    "Softmax": _softmax,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Slice": _slice,
    "Pad": _pad,
    "Concat": _concat,
}
