"""An operator as Relax: every instruction of the table that is computed at inference, in TVM's words.

Schedule hints are left out: they ride in ONNX (`operators.onnx_form`), and here there is no place for them.
`LOWERINGS` has one row for each instruction whose result is a feature, called as ``row(arguments, hyper)``. The batch
is read off the arguments' types, so one table serves a fixed batch of any size and a symbolic one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gos_adapt.instructions import aggregation, attention, calculus, probability
from gos_adapt.instructions.base import Hyper, Instruction, Kind, Shape
from gos_adapt.instructions.expression import SYMBOLS, Algebra, Program
from gos_adapt.instructions.probability import EVIDENCE
from gos_adapt.instructions.rules import as_int, as_ints
from gos_adapt.instructions.unfold import taps
from gos_adapt.operators.evaluate import fold
from gos_adapt.operators.graph import INPUT, LEAVES, OperatorGraph
from tvm_passes.compat import relax

Array = np.ndarray[Any, Any]
Lowering = Callable[[tuple[Any, ...], Hyper], Any]
op, nn = relax.op, relax.op.nn


def emit(builder: Any, graph: OperatorGraph, weights: Sequence[Array], inputs: Sequence[Any]) -> Any:
    """Write an operator into a function under construction; what depends on weights alone is computed now.

    Args:
        builder: A `relax.BlockBuilder` inside a function; it binds every value but the last.
        graph: Any operator.
        weights: In node order.
        inputs: A Relax variable for each input leaf, in node order, with batch axis.

    Returns:
        The result: a call for the caller to bind, or one of `inputs` where the operator is the identity.
    """
    folded, constants = fold(graph, weights)
    features, leaves = iter(inputs), iter(constants)
    values: list[Any] = []
    for i, node in enumerate(folded.nodes):
        if node.op in LEAVES:
            values.append(next(features) if node.op == INPUT else _constant(next(leaves)))
            continue
        value = LOWERINGS[node.op](tuple(values[a] for a in node.args), dict(node.hyper))
        last = i == len(folded.nodes) - 1
        values.append(value if last or isinstance(value, relax.Var) else builder.emit(value))
    return values[-1]


def _constant(array: Array) -> Any:
    return relax.const(np.ascontiguousarray(array, np.float32))


def _scalar(value: float) -> Any:
    return relax.const(value, "float32")


def _sizes(x: Any) -> tuple[Any, ...]:
    """Batch, which may be symbolic, then the other sizes of a bound value."""
    batch, *sizes = x.ty.shape
    return (batch, *map(int, sizes))


def _reshape(x: Any, shape: Shape) -> Any:
    return op.reshape(x, (_sizes(x)[0], *shape))


def _pad(x: Any, before: Sequence[int], after: Sequence[int]) -> Any:
    """Put zeros around the axes after the batch."""
    pairs = [amount for pair in zip((0, *before), (0, *after), strict=True) for amount in pair]
    return nn.pad(x, pairs)


# Linear algebra


def _cross_correlation(arguments: tuple[Any, ...], hyper: Hyper) -> Any:
    x, weight = arguments
    return nn.conv2d(
        x,
        weight,
        strides=as_ints(hyper["stride"]),
        padding=as_ints(hyper["padding"]),
        dilation=as_ints(hyper["dilation"]),
        groups=as_int(hyper["groups"]),
    )


def _per_channel(join: Callable[[Any, Any], Any]) -> Lowering:
    def lower(arguments: tuple[Any, ...], _hyper: Hyper) -> Any:
        x, weight = arguments
        return join(x, _along_channels(weight, x))

    return lower


def _vector_norm(arguments: tuple[Any, ...], hyper: Hyper) -> Any:
    (x,) = arguments
    if hyper["order"] == 1:
        return op.sum(op.abs(x), axis=1, keepdims=True)
    return op.sqrt(op.sum(op.multiply(x, x), axis=1, keepdims=True))


def _along_channels(weight: Any, x: Any) -> Any:
    _, channels, *rest = _sizes(x)
    return op.reshape(weight, (1, channels, *(1 for _ in rest)))


# Activations


def _relu6(x: Any) -> Any:
    return op.clip(x, 0, 6)


def _hard_sigmoid(x: Any) -> Any:
    return op.divide(_relu6(op.add(x, _scalar(3))), _scalar(6))


# Pooling


def _pool(pool: Callable[..., Any]) -> Lowering:
    def lower(arguments: tuple[Any, ...], hyper: Hyper) -> Any:
        kernel, stride, padding = (as_ints(hyper[name]) for name in ("kernel", "stride", "padding"))
        return pool(arguments[0], kernel, stride, padding, count_include_pad=False)

    return lower


# What is given by its equation alone

RELAX: Algebra = {
    "constant": _scalar,
    "add": op.add,
    "multiply": op.multiply,
    "divide": op.divide,
    "maximum": op.maximum,
    "minimum": op.minimum,
    "square_root": op.sqrt,
    "exponential": op.exp,
    "tanh": op.tanh,
    "sigmoid": op.sigmoid,
    "magnitude": op.abs,
    "sign": op.sign,
}


def _expression(row: Instruction) -> Lowering:
    features = row.arguments.count(Kind.FEATURE)
    symbols = SYMBOLS[: len(row.arguments)]

    def lower(arguments: tuple[Any, ...], hyper: Hyper) -> Any:
        weights = (_along_channels(weight, arguments[0]) for weight in arguments[features:])
        return Program.of(row.equation(*symbols, **hyper), symbols).run(RELAX, (*arguments[:features], *weights))

    return lower


# Calculus, probability, aggregation


def _gradient(arguments: tuple[Any, ...], hyper: Hyper) -> Any:
    (x,), axis = arguments, as_int(hyper["axis"]) + 1
    size = _sizes(x)[axis]

    def part(value: Any, start: int, stop: int) -> Any:
        return op.strided_slice(value, (axis,), (start,), (stop,))

    differences = op.subtract(part(x, 1, size), part(x, 0, size - 1))
    before = op.concat((part(differences, 0, 1), differences), axis)
    after = op.concat((differences, part(differences, size - 2, size - 1)), axis)
    return op.multiply(op.add(before, after), _scalar(0.5))


def _bayes_rule(likelihood: Any, prior: Any) -> Any:
    joint = op.abs(op.multiply(likelihood, _along_channels(prior, likelihood)))
    return op.divide(joint, op.maximum(op.sum(joint, axis=1, keepdims=True), _scalar(EVIDENCE)))


def _along(reduce: Callable[..., Any]) -> Lowering:
    return lambda arguments, hyper: reduce(arguments[0], axis=as_int(hyper["axis"]) + 1, keepdims=True)


# Structure


def _zero(arguments: tuple[Any, ...], hyper: Hyper) -> Any:
    return op.full((_sizes(arguments[0])[0], *as_ints(hyper["shape"])), _scalar(0), "float32")


def _pad_channels(arguments: tuple[Any, ...], hyper: Hyper) -> Any:
    (x,) = arguments
    rest = (0,) * (len(_sizes(x)) - 2)
    return _pad(x, (as_int(hyper["before"]), *rest), (as_int(hyper["after"]), *rest))


def _subsample(arguments: tuple[Any, ...], hyper: Hyper) -> Any:
    (x,) = arguments
    return op.strided_slice(x, (2, 3), (0, 0), _sizes(x)[2:], as_ints(hyper["stride"]))


def _shift(arguments: tuple[Any, ...], hyper: Hyper) -> Any:
    (x,), (down, right) = arguments, as_ints(hyper["offset"])
    _, _, rows, columns = _sizes(x)
    start = (max(-down, 0), max(-right, 0))
    stop = (rows - max(down, 0), columns - max(right, 0))
    kept = op.strided_slice(x, (2, 3), start, stop)
    return _pad(kept, (0, max(down, 0), max(right, 0)), (0, *start))


def _channel_shuffle(arguments: tuple[Any, ...], hyper: Hyper) -> Any:
    (x,), groups = arguments, as_int(hyper["groups"])
    batch, channels, *rest = _sizes(x)
    split = op.reshape(x, (batch, groups, channels // groups, *rest))
    swapped = op.permute_dims(split, (0, 2, 1, *range(3, 3 + len(rest))))
    return op.reshape(swapped, (batch, channels, *rest))


def _upsample(arguments: tuple[Any, ...], hyper: Hyper) -> Any:
    rows, columns = as_ints(hyper["factor"])
    return op.repeat(op.repeat(arguments[0], rows, axis=2), columns, axis=3)


def _unfold(arguments: tuple[Any, ...], hyper: Hyper) -> Any:
    (x,), (top, left, bottom, right) = arguments, as_ints(hyper["padding"])
    padded = _pad(x, (0, top, left), (0, bottom, right))
    stride = as_ints(hyper["stride"])
    parts = [op.strided_slice(padded, (2, 3), *tap, stride) for tap in taps(_sizes(x)[2:], hyper)]
    return op.concat(parts, axis=1)


def _heads(arguments: tuple[Any, ...], heads: int) -> list[Any]:
    """Queries, keys and values as ``(n, heads, c / heads, positions)``."""
    sizes = [_sizes(x) for x in arguments]
    return [
        op.reshape(x, (batch, heads, channels // heads, int(np.prod(positions))))
        for x, (batch, channels, *positions) in zip(arguments, sizes, strict=True)
    ]


def _joined(taken: Any, arguments: tuple[Any, ...]) -> Any:
    queries, _, values = (_sizes(x) for x in arguments)
    return op.reshape(taken, (queries[0], values[1], *queries[2:]))


def _attention(arguments: tuple[Any, ...], hyper: Hyper) -> Any:
    heads = as_int(hyper["heads"])
    queries, keys, values = _heads(arguments, heads)
    match = op.matmul(op.permute_dims(keys, (0, 1, 3, 2)), queries)
    scaled = op.multiply(match, _scalar(attention.scale_of(_sizes(arguments[0])[1], heads)))
    return _joined(op.matmul(values, nn.softmax(scaled, axis=2)), arguments)


def _linear_attention(arguments: tuple[Any, ...], hyper: Hyper) -> Any:
    queries, keys, values = _heads(arguments, as_int(hyper["heads"]))
    context = op.matmul(values, op.permute_dims(nn.softmax(keys, axis=3), (0, 1, 3, 2)))
    return _joined(op.matmul(context, nn.softmax(queries, axis=2)), arguments)


def _plain(expression: Callable[..., Any]) -> Lowering:
    """Row of an instruction whose hyperparameters do not matter here."""
    return lambda arguments, _hyper: expression(*arguments)


LOWERINGS: dict[str, Lowering] = {
    row.name: _expression(row) for row in (*aggregation.ELEMENTWISE, *probability.DENSITIES, *calculus.DERIVATIVES)
} | {
    "cross_correlation": _cross_correlation,
    "matrix_product": _plain(op.matmul),
    "channel_bias": _per_channel(op.add),
    "channel_scale": _per_channel(op.multiply),
    "matrix_vector_product": _plain(lambda a, x: op.squeeze(op.matmul(a, op.expand_dims(x, 2)), 2)),
    "dot_product": _plain(lambda a, b: op.sum(op.multiply(a, b), axis=1, keepdims=True)),
    "outer_product": _plain(lambda a, b: op.multiply(op.expand_dims(a, 2), op.expand_dims(b, 1))),
    "scale": _plain(op.multiply),
    "subtract": _plain(op.subtract),
    "vector_norm": _vector_norm,
    "frobenius_norm": _plain(lambda x: op.sqrt(op.sum(op.multiply(x, x), axis=(2, 3)))),
    "relu": _plain(nn.relu),
    "relu6": _plain(_relu6),
    "leaky_relu": lambda arguments, hyper: nn.leakyrelu(arguments[0], hyper["slope"]),
    "sigmoid": _plain(op.sigmoid),
    "hard_sigmoid": _plain(_hard_sigmoid),
    "tanh": _plain(op.tanh),
    "hard_swish": _plain(lambda x: op.multiply(x, _hard_sigmoid(x))),
    "softmax": _plain(lambda x: nn.softmax(x, axis=1)),
    "max_pool": _pool(nn.max_pool2d),
    "average_pool": _pool(nn.avg_pool2d),
    "global_average_pool": _plain(lambda x: op.mean(x, axis=(2, 3))),
    "add": _plain(op.add),
    "mean": _plain(lambda a, b: op.multiply(op.add(a, b), _scalar(0.5))),
    "hadamard": _plain(op.multiply),
    "maximum": _plain(op.maximum),
    "minimum": _plain(op.minimum),
    "sum_along": _along(op.sum),
    "mean_along": _along(op.mean),
    "maximum_along": _along(op.max),
    "minimum_along": _along(op.min),
    "gradient": _gradient,
    "bayes_rule": _plain(_bayes_rule),
    "concat": _plain(lambda *features: op.concat(features, axis=1)),
    "identity": _plain(lambda x: x),
    "tile": _plain(lambda x: x),
    "unroll": _plain(lambda x: x),
    "zero": _zero,
    "channel_slice": lambda arguments, hyper: op.strided_slice(
        arguments[0], (1,), (as_int(hyper["start"]),), (as_int(hyper["stop"]),)
    ),
    "pad_channels": _pad_channels,
    "subsample": _subsample,
    "shift": _shift,
    "channel_shuffle": _channel_shuffle,
    "attention": _attention,
    "linear_attention": _linear_attention,
    "transpose": _plain(lambda x: op.permute_dims(x, (0, 2, 1))),
    "reshape": lambda arguments, hyper: _reshape(arguments[0], as_ints(hyper["shape"])),
    "flatten": lambda arguments, _hyper: _reshape(arguments[0], (int(np.prod(_sizes(arguments[0])[1:])),)),
    "upsample": _upsample,
    "unfold": _unfold,
}
