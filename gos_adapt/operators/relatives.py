"""The table of cheaper or differently shaped instructions that may stand where one instruction stands.

A relative is absent where its arithmetic makes no sense (channels that do not divide); whether it fits the operator
around it is left to the type check.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gos_adapt.instructions.notation import by
from gos_adapt.instructions.rules import as_int, as_ints
from gos_adapt.instructions.windows import extent
from gos_adapt.operators import factors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gos_adapt.instructions.base import Hyper, HyperValue, Shape
    from gos_adapt.operators.builder import Builder

    Array = np.ndarray[Any, Any]
    Arrays = tuple[Array, ...]


def _no_weights(*_weights: Array) -> Arrays:
    return ()


@dataclass(frozen=True)
class Relative:
    """What may stand in the place of one node.

    Attributes:
        name: For example ``"low_rank_out 8"``.
        build: Writes it: builder, the replaced node's feature arguments -> the value that takes the node's place,
            which it adds last.
        initial: Weights for the leaves `build` adds, in that order, from the replaced node's weight arguments.
    """

    name: str
    build: Callable[..., int]
    initial: Callable[..., Arrays] = _no_weights


def _fractions(channels: int, *parts: int) -> tuple[int, ...]:
    return tuple(max(1, channels // part) for part in parts)


# Convolutions


@dataclass(frozen=True)
class _Convolution:
    """A cross-correlation to find relatives of: its input channels and its settings."""

    c: int
    o: int
    kernel: Shape
    stride: Shape
    padding: Shape
    dilation: Shape
    groups: int

    @classmethod
    def of(cls, x: Shape, hyper: Hyper) -> _Convolution:
        kernel, stride, padding, dilation = (as_ints(hyper[k]) for k in ("kernel", "stride", "padding", "dilation"))
        return cls(x[0], as_int(hyper["channels"]), kernel, stride, padding, dilation, as_int(hyper["groups"]))

    @property
    def pointwise(self) -> bool:
        return self.kernel == (1, 1)

    @property
    def keeps_places(self) -> bool:
        """Whether the middle of every window is the element of the same place in the result."""
        rows, columns = ((k - 1) * d for k, d in zip(self.kernel, self.dilation, strict=True))
        top, left, bottom, right = self.padding
        return self.stride == (1, 1) and (2 * top, 2 * left, 2 * bottom, 2 * right) == (rows, columns, rows, columns)

    def reaching(self, kernel: Shape, dilation: Shape) -> _Convolution:
        """The same with another filter, the padding grown (or cut, perhaps below zero) as its extent is, evenly."""
        extents = zip(extent(kernel, dilation), extent(self.kernel, self.dilation), strict=True)
        growth = tuple(new - old for new, old in extents)
        first = tuple(int(n / 2) for n in growth)
        last = tuple(n - f for n, f in zip(growth, first, strict=True))
        padding = tuple(p + n for p, n in zip(self.padding, first + last, strict=True))
        return replace(self, kernel=kernel, dilation=dilation, padding=padding)

    def write(self, b: Builder, x: int, channels: int | None = None, **changes: HyperValue) -> int:
        """Add it, or the same with other settings."""
        settings: dict[str, HyperValue] = {
            "channels": channels or self.o,
            "kernel": self.kernel,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }
        return b.apply("cross_correlation", x, **(settings | changes))


def _convolution_relatives(x: Shape, hyper: Hyper) -> Iterator[Relative]:
    conv = _Convolution.of(x, hyper)
    along = tuple(int(size > 1) for size in x[1:])  # a map of one row is a 1-D one
    narrow, (kh, kw) = min(conv.c, conv.o), conv.kernel
    for kernel in ((min(kh, 5), min(kw, 5)), (min(kh, 3), min(kw, 3)), (1, 1), (kh, 1), (1, kw)):
        if _shares_middle(conv.kernel, kernel):
            yield _smaller_kernel(conv, kernel)
    larger = tuple(k if k == 1 else max(k, 5) for k in conv.kernel)
    if _shares_middle(larger, conv.kernel):
        yield _larger_kernel(conv, larger)
    if conv.dilation == (1, 1) and kw % 2 and kw > 1:
        for columns in (2, 3, 4):
            yield _dilated(conv, (1, columns))
        if kh % 2 and kh > 1:
            yield _dilated(conv, (2, 2))
    yield _strided_upsampled(conv, along)
    if conv.groups == conv.c == conv.o and min(conv.kernel) > 1:
        yield _depthwise_column_then_row(conv)
    if conv.groups > 1:
        return
    for rank in _fractions(narrow, 2, 4):
        yield _low_rank_in(conv, rank)
        if not conv.pointwise:
            yield _low_rank_out(conv, rank)
            yield _bottleneck(conv, rank)
    if min(conv.kernel) > 1:
        yield _column_then_row(conv, narrow)
        yield _column_then_row(conv, max(1, narrow // 2))
    for groups in (2, 4, 8):
        if conv.c % groups == conv.o % groups == 0 and groups < narrow:
            yield _grouped(conv, groups)
            yield _shuffled_grouped(conv, groups)
            if not conv.pointwise:
                yield _grouped_mixed(conv, groups)
    if not conv.pointwise:
        yield _unfolded(conv)
        yield _depthwise_pointwise(conv, 1)
        yield _depthwise_pointwise(conv, 2)
        if _shares_middle(larger, conv.kernel):
            yield _larger_depthwise_pointwise(conv, larger)
        yield _depthwise_pooled_pointwise(conv, along)
        yield _pointwise_depthwise(conv)
    if conv.keeps_places and not conv.pointwise:
        for part in _fractions(conv.c, 2, 4):
            if conv.c == conv.o:
                yield _partial(conv, part)
            yield _partial_mixed(conv, part)


def _shares_middle(kernel: Shape, smaller: Shape) -> bool:
    """Whether the second filter, and not the same, fits into the first with as many elements left over on each side."""
    less = tuple(k - s for k, s in zip(kernel, smaller, strict=True))
    return kernel != smaller and min(less) >= 0 and not any(n % 2 for n in less)


def _smaller_kernel(conv: _Convolution, kernel: Shape) -> Relative:
    return Relative(
        f"smaller_kernel {by(kernel)}",
        conv.reaching(kernel, conv.dilation).write,
        lambda w: (factors.centre(w, kernel),),
    )


def _larger_kernel(conv: _Convolution, kernel: Shape) -> Relative:
    """The own filter within zeros (thesis 4.5: early convolutions keep a plain form with 5x5 kernels)."""
    return Relative(
        f"larger_kernel {by(kernel)}",
        conv.reaching(kernel, conv.dilation).write,
        lambda w: (factors.surrounded(w, kernel),),
    )


def _dilated(conv: _Convolution, dilation: Shape) -> Relative:
    """Every n-th tap, or the outer two, and zeros between (thesis 4.5: 1-3 zero columns between filter columns).

    The thesis does not say how many columns remain. With all of them nothing would be saved.
    """
    rows, columns = (max(1, min(d, k - 1)) for d, k in zip(dilation, conv.kernel, strict=True))
    kernel = ((conv.kernel[0] - 1) // rows + 1, (conv.kernel[1] - 1) // columns + 1)
    spread = conv.reaching(kernel, dilation)
    top, left = (max(0, p - q) for p, q in zip(conv.padding[:2], spread.padding[:2], strict=True))
    return Relative(
        f"dilated {by(kernel)} d{by(dilation)}",
        spread.write,
        lambda w: (w[:, :, top::rows, left::columns][:, :, : kernel[0], : kernel[1]],),
    )


def _strided_upsampled(conv: _Convolution, along: Shape) -> Relative:
    factor = tuple(1 + a for a in along)
    stride = tuple(s * f for s, f in zip(conv.stride, factor, strict=True))
    return Relative(
        "strided_upsampled",
        lambda b, x: b.apply("upsample", conv.write(b, x, stride=stride), factor=factor),
        lambda w: (w,),
    )


def _low_rank_in(conv: _Convolution, rank: int) -> Relative:
    return Relative(
        f"low_rank_in {rank}",
        lambda b, x: conv.write(b, b.convolution(x, rank, (1, 1))),
        lambda w: factors.pointwise_then_grouped(w, 1, rank),
    )


def _low_rank_out(conv: _Convolution, rank: int) -> Relative:
    return Relative(
        f"low_rank_out {rank}",
        lambda b, x: b.convolution(conv.write(b, x, rank), conv.o, (1, 1)),
        lambda w: factors.grouped_then_pointwise(w, 1, rank),
    )


def _bottleneck(conv: _Convolution, rank: int) -> Relative:
    return Relative(
        f"bottleneck {rank}",
        lambda b, x: b.convolution(conv.write(b, b.convolution(x, rank, (1, 1)), rank), conv.o, (1, 1)),
        lambda w: factors.bottleneck(w, rank),
    )


def _column_then_row(conv: _Convolution, rank: int) -> Relative:
    return Relative(
        f"column_then_row {rank}",
        lambda b, x: _separated(conv, b, x, rank, 1),
        lambda w: factors.column_then_row(w, rank),
    )


def _depthwise_column_then_row(conv: _Convolution) -> Relative:
    return Relative(
        "depthwise_column_then_row",
        lambda b, x: _separated(conv, b, x, conv.c, conv.c),
        factors.depthwise_column_then_row,
    )


def _separated(conv: _Convolution, b: Builder, x: int, inner: int, groups: int) -> int:
    (kh, kw), (sh, sw), (dh, dw), (top, left, bottom, right) = conv.kernel, conv.stride, conv.dilation, conv.padding
    x = b.convolution(x, inner, (kh, 1), stride=(sh, 1), padding=(top, 0, bottom, 0), dilation=(dh, 1), groups=groups)
    return b.convolution(
        x, conv.o, (1, kw), stride=(1, sw), padding=(0, left, 0, right), dilation=(1, dw), groups=groups
    )


def _grouped(conv: _Convolution, groups: int) -> Relative:
    return Relative(
        f"grouped {groups}",
        lambda b, x: conv.write(b, x, groups=groups),
        lambda w: (factors.block_diagonal(w, groups),),
    )


def _shuffled_grouped(conv: _Convolution, groups: int) -> Relative:
    shuffled = np.arange(conv.c).reshape(groups, -1).T.ravel()
    return Relative(
        f"shuffled_grouped {groups}",
        lambda b, x: conv.write(b, b.apply("channel_shuffle", x, groups=groups), groups=groups),
        lambda w: (factors.block_diagonal(w[:, shuffled], groups),),
    )


def _grouped_mixed(conv: _Convolution, groups: int) -> Relative:
    return Relative(
        f"grouped_mixed {groups}",
        lambda b, x: b.convolution(conv.write(b, x, groups=groups), conv.o, (1, 1)),
        lambda w: factors.grouped_then_pointwise(w, groups, conv.o // groups),
    )


def _unfolded(conv: _Convolution) -> Relative:
    """Patches, then one matrix for every place: what mutation needs to leave taps out, or to mix them otherwise."""
    return Relative(
        "unfolded",
        lambda b, x: b.convolution(
            b.apply("unfold", x, kernel=conv.kernel, stride=conv.stride, padding=conv.padding, dilation=conv.dilation),
            conv.o,
            (1, 1),
        ),
        lambda w: (w.transpose(0, 2, 3, 1).reshape(conv.o, -1, 1, 1),),
    )


def _depthwise_pointwise(conv: _Convolution, multiplier: int) -> Relative:
    return Relative(
        f"depthwise_pointwise x{multiplier}",
        lambda b, x: b.convolution(conv.write(b, x, multiplier * conv.c, groups=conv.c), conv.o, (1, 1)),
        lambda w: factors.grouped_then_pointwise(w, conv.c, multiplier),
    )


def _larger_depthwise_pointwise(conv: _Convolution, kernel: Shape) -> Relative:
    depthwise = _depthwise_pointwise(conv.reaching(kernel, conv.dilation), 1)
    return Relative(
        f"depthwise_pointwise {by(kernel)}",
        depthwise.build,
        lambda w: depthwise.initial(factors.surrounded(w, kernel)),
    )


def _depthwise_pooled_pointwise(conv: _Convolution, along: Shape) -> Relative:
    """Dilated, depthwise, then pooling (thesis 4.5: late convolutions); the pooling has the stride."""
    dilation = tuple(2 * d for d in conv.dilation)
    spread = replace(conv.reaching(conv.kernel, dilation), stride=(1, 1))
    pool: dict[str, HyperValue] = {"kernel": conv.stride, "stride": conv.stride, "padding": (0, 0, 0, 0)}
    if conv.stride == (1, 1):
        pool |= {"kernel": tuple(1 + 2 * a for a in along), "padding": along * 2}

    def build(b: Builder, x: int) -> int:
        filtered = spread.write(b, x, conv.c, groups=conv.c)
        return b.convolution(b.apply("average_pool", filtered, **pool), conv.o, (1, 1))

    return Relative("depthwise_pooled_pointwise", build, lambda w: factors.grouped_then_pointwise(w, conv.c, 1))


def _pointwise_depthwise(conv: _Convolution) -> Relative:
    return Relative(
        "pointwise_depthwise",
        lambda b, x: conv.write(b, b.convolution(x, conv.o, (1, 1)), groups=conv.o),
        lambda w: factors.pointwise_then_grouped(w, conv.o, 1),
    )


def _partial(conv: _Convolution, part: int) -> Relative:
    """Convolve the first channels, hand on the others.

    Reference: Chen et al., "Run, don't walk: chasing higher FLOPS for faster neural networks", CVPR 2023.
    """
    return Relative(f"partial {part}", lambda b, x: _partly_convolved(conv, b, x, part), lambda w: (w[:part, :part],))


def _partial_mixed(conv: _Convolution, part: int) -> Relative:
    """The same, then a pointwise mix: low rank for the convolved channels, the middle tap for the others."""

    def initial(w: Array) -> Arrays:
        filters, mix = factors.grouped_then_pointwise(w[:, :part], 1, part)
        return filters, np.concatenate((mix, factors.centre(w[:, part:], (1, 1))), axis=1)

    return Relative(
        f"partial_mixed {part}",
        lambda b, x: b.convolution(_partly_convolved(conv, b, x, part), conv.o, (1, 1)),
        initial,
    )


def _partly_convolved(conv: _Convolution, b: Builder, x: int, part: int) -> int:
    convolved = conv.write(b, b.apply("channel_slice", x, start=0, stop=part), part)
    return b.apply("concat", convolved, b.apply("channel_slice", x, start=part, stop=conv.c))


# Everything else


def _matrix_relatives(x: Shape, hyper: Hyper) -> Iterator[Relative]:
    n = as_int(hyper["channels"])
    narrow = min(x[0], n)
    for rank in _fractions(narrow, 2, 4, 8):
        yield _low_rank_matrix(n, rank)


def _low_rank_matrix(n: int, rank: int) -> Relative:
    return Relative(
        f"low_rank {rank}",
        lambda b, x: b.apply("matrix_product", b.apply("matrix_product", x, channels=rank), channels=n),
        lambda w: factors.truncated_svd(w, rank),
    )


def _pool_relatives(op: str, other: str) -> Callable[[Shape, Hyper], Iterator[Relative]]:
    def relatives(_x: Shape, hyper: Hyper) -> Iterator[Relative]:
        stride = as_ints(hyper["stride"])
        yield Relative(other, lambda b, x: b.apply(other, x, **hyper))
        yield Relative("subsample", lambda b, x: b.apply("subsample", x, stride=stride))
        yield Relative(
            f"{op} of disjoint windows", lambda b, x: b.apply(op, x, kernel=stride, stride=stride, padding=(0, 0, 0, 0))
        )

    return relatives


def _scale_relatives(_x: Shape, _hyper: Hyper) -> Iterator[Relative]:
    """α(x - μ)³ + β(x - μ) in place of a normalisation's scale (thesis 4.5); the bias after it is γ.

    Deviation: the thesis standardises first; here the deviation is in α and β.
    """

    def build(b: Builder, x: int) -> int:
        centred = b.bias(x)
        cube = b.apply("channel_scale", b.apply("power", centred, exponent=3))
        return b.apply("add", cube, b.apply("channel_scale", centred))

    yield Relative("cubic", build, lambda w: (np.zeros_like(w), np.zeros_like(w), w))


def _softmax_relatives(x: Shape, _hyper: Hyper) -> Iterator[Relative]:
    """Without exponentials: eˣ is nearly (1 + x/n)ⁿ where x is small, and both are zero where x is very negative."""
    yield _HARD_SIGMOID
    for n in (1, 2, 4):
        yield _power_softmax(x[0], n)


def _power_softmax(c: int, n: int) -> Relative:
    def build(b: Builder, x: int) -> int:
        likelihood = b.apply("relu", b.bias(b.apply("channel_scale", x)))
        return b.apply("bayes_rule", b.apply("power", likelihood, exponent=n) if n > 1 else likelihood)

    ones = np.ones(c, np.float32)
    return Relative(f"power_softmax {n}", build, lambda: (ones / np.float32(n), ones, ones))


def _attention_relatives(x: Shape, hyper: Hyper) -> Iterator[Relative]:
    """Without the matrix of all pairs of positions, or with a smaller one; or without looking elsewhere at all."""
    heads = as_int(hyper["heads"])
    yield Relative("linear_attention", lambda b, q, k, v: b.apply("linear_attention", q, k, v, heads=heads))
    for part in (2, 4):
        if x[2] >= 2 * part:
            yield _pooled_attention((min(part, x[1]), part), heads)
    yield Relative("values alone", lambda b, _q, _k, v: b.apply("identity", v))
    yield _neighbours(x[0], (1, 3) if x[1] == 1 else (3, 3))


def _pooled_attention(window: Shape, heads: int) -> Relative:
    """Keys and values averaged over disjoint windows.

    Reference: Wang et al., "Pyramid vision transformer", ICCV 2021, section 3.3, with an average for their projection.
    """

    def build(b: Builder, q: int, k: int, v: int) -> int:
        keys, values = (b.apply("average_pool", x, kernel=window, stride=window, padding=(0, 0, 0, 0)) for x in (k, v))
        return b.apply("attention", q, keys, values, heads=heads)

    return Relative(f"pooled_attention {by(window)}", build)


def _neighbours(channels: int, kernel: Shape) -> Relative:
    """Values of the position and its neighbours, each channel by itself; at first of the position alone."""
    middle = tuple(size // 2 for size in kernel)
    filters = np.zeros((channels, 1, *kernel), np.float32)
    filters[:, :, middle[0], middle[1]] = 1
    return Relative(
        f"depthwise {by(kernel)} of the values",
        lambda b, _q, _k, v: b.convolution(v, channels, kernel, padding=middle * 2, groups=channels),
        lambda: (filters,),
    )


def _activation_relatives(*others: Relative) -> Callable[[Shape, Hyper], Iterator[Relative]]:
    return lambda _x, _hyper: iter(others)


_IDENTITY = Relative("identity", lambda b, x: b.apply("identity", x))
_RELU = Relative("relu", lambda b, x: b.apply("relu", x))
_LEAKY_RELU = Relative("leaky_relu", lambda b, x: b.apply("leaky_relu", x, slope=0.01))
_HARD_SIGMOID = Relative("hard_sigmoid", lambda b, x: b.apply("hard_sigmoid", x))
_HARD_SWISH = Relative("hard_swish", lambda b, x: b.apply("hard_swish", x))

RELATIVES: dict[str, Callable[[Shape, Hyper], Iterator[Relative]]] = {
    "cross_correlation": _convolution_relatives,
    "matrix_product": _matrix_relatives,
    "channel_scale": _scale_relatives,
    "max_pool": _pool_relatives("max_pool", "average_pool"),
    "average_pool": _pool_relatives("average_pool", "max_pool"),
    "relu": _activation_relatives(_IDENTITY, _LEAKY_RELU),
    "relu6": _activation_relatives(_IDENTITY, _RELU),
    "leaky_relu": _activation_relatives(_IDENTITY, _RELU),
    "sigmoid": _activation_relatives(_HARD_SIGMOID),
    "tanh": _activation_relatives(_LEAKY_RELU, _HARD_SWISH),
    "hard_swish": _activation_relatives(_RELU, _LEAKY_RELU),
    "softmax": _softmax_relatives,
    "attention": _attention_relatives,
}
"""Instruction -> its relatives, from the shape of its first argument and its settings."""
