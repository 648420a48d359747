"""Each rewrite rule as before -> after, and what canonical order must not depend on."""

from __future__ import annotations

import numpy as np
import pytest

from gos_adapt.operators.builder import Builder
from gos_adapt.operators.canonical import canonicalise
from gos_adapt.operators.evaluate import evaluate
from gos_adapt.operators.graph import Node, OperatorGraph


def written(write) -> OperatorGraph:
    b = Builder()
    write(b, b.input(4, 6, 6))
    graph = b.graph()
    assert isinstance(graph, OperatorGraph), graph
    return graph


def rearranged(b):
    """A weight (4,) that comes back to the shape and order it had."""
    matrix = b.apply("weight_reshape", b.weight(4), shape=(2, 2))
    return b.apply("weight_reshape", b.apply("weight_transpose", matrix, axes=(0, 1)), shape=(4,))


def biased_by_rows(b, x, one, other):
    return b.apply("channel_bias", x, b.apply("weight_reshape", b.apply("weight_add", one, other), shape=(4,)))


POOL_OF_ONE = {"kernel": (1, 1), "stride": (2, 2), "padding": (0, 0, 0, 0)}
WINDOW = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1, 1, 1)}
REWRITES = {
    "identity goes": (lambda b, x: b.apply("relu", b.apply("identity", x)), lambda b, x: b.apply("relu", x)),
    "a bare identity stays": (
        lambda b, x: b.apply("identity", b.apply("identity", x)),
        lambda b, x: b.apply("identity", x),
    ),
    "relu twice": (lambda b, x: b.apply("relu", b.apply("relu", x)), lambda b, x: b.apply("relu", x)),
    "leaky relu of a relu": (
        lambda b, x: b.apply("leaky_relu", b.apply("relu", x), slope=0.01),
        lambda b, x: b.apply("relu", x),
    ),
    "square root of relu": (
        lambda b, x: b.apply("square_root", b.apply("relu", x)),
        lambda b, x: b.apply("square_root", x),
    ),
    "relu of a density": (
        lambda b, x: b.apply("relu", b.apply("normal_density", x)),
        lambda b, x: b.apply("normal_density", x),
    ),
    "relu6 of relu": (lambda b, x: b.apply("relu6", b.apply("relu", x)), lambda b, x: b.apply("relu6", x)),
    "shift by nothing": (lambda b, x: b.apply("shift", x, offset=(0, 0)), lambda b, x: b.apply("identity", x)),
    "whole slice": (
        lambda b, x: b.apply("relu", b.apply("channel_slice", x, start=0, stop=4)),
        lambda b, x: b.apply("relu", x),
    ),
    "reshape of reshape": (
        lambda b, x: b.apply("reshape", b.apply("flatten", x), shape=(8, 3, 6)),
        lambda b, x: b.apply("reshape", x, shape=(8, 3, 6)),
    ),
    "reshape to a vector": (lambda b, x: b.apply("reshape", x, shape=(144,)), lambda b, x: b.apply("flatten", x)),
    "pool of one element": (
        lambda b, x: b.apply("average_pool", x, **POOL_OF_ONE),
        lambda b, x: b.apply("subsample", x, stride=(2, 2)),
    ),
    "unfold of one element": (
        lambda b, x: b.apply("unfold", x, **POOL_OF_ONE, dilation=(1, 1)),
        lambda b, x: b.apply("subsample", x, stride=(2, 2)),
    ),
    "dilation of one column": (
        lambda b, x: b.convolution(x, 8, (3, 1), padding=(2, 0, 2, 0), dilation=(2, 3)),
        lambda b, x: b.convolution(x, 8, (3, 1), padding=(2, 0, 2, 0), dilation=(2, 1)),
    ),
    "dilated unfold of one element": (
        lambda b, x: b.apply("unfold", x, **POOL_OF_ONE, dilation=(2, 2)),
        lambda b, x: b.apply("subsample", x, stride=(2, 2)),
    ),
    "unfold of zero": (
        lambda b, x: b.apply("unfold", b.apply("zero", x, shape=(4, 6, 6)), **WINDOW, dilation=(1, 1)),
        lambda b, x: b.apply("zero", x, shape=(36, 6, 6)),
    ),
    "maximum with itself": (
        lambda b, x: b.apply("maximum", b.apply("tanh", x), b.apply("tanh", x)),
        lambda b, x: b.apply("tanh", x),
    ),
    "weighted mean with itself": (
        lambda b, x: b.apply("weighted_mean", b.apply("tanh", x), b.apply("tanh", x)),
        lambda b, x: b.apply("tanh", x),
    ),
    "quotient of zero": (
        lambda b, x: b.apply("divide", b.apply("zero", x, shape=(4, 6, 6)), x),
        lambda b, x: b.apply("zero", x, shape=(4, 6, 6)),
    ),
    "a hint on what is no kernel": (
        lambda b, x: b.apply("tile", b.apply("relu", x), columns=2),
        lambda b, x: b.apply("relu", x),
    ),
    "two hints on one knob": (
        lambda b, x: b.apply("tile", b.apply("tile", b.convolution(x, 4, (1, 1)), columns=2), columns=4),
        lambda b, x: b.apply("tile", b.convolution(x, 4, (1, 1)), columns=4),
    ),
    "hints in another order": (
        lambda b, x: b.apply("tile", b.apply("unroll", b.convolution(x, 4, (1, 1)), steps=2), columns=4),
        lambda b, x: b.apply("unroll", b.apply("tile", b.convolution(x, 4, (1, 1)), columns=4), steps=2),
    ),
    "difference with itself": (
        lambda b, x: b.apply("subtract", b.apply("tanh", x), b.apply("tanh", x)),
        lambda b, x: b.apply("zero", x, shape=(4, 6, 6)),
    ),
    "convolution of zero": (
        lambda b, x: b.bias(b.convolution(b.apply("zero", x, shape=(4, 6, 6)), 8, (1, 1))),
        lambda b, x: b.bias(b.apply("zero", x, shape=(8, 6, 6))),
    ),
    "sum with zero": (
        lambda b, x: b.apply("add", b.apply("zero", x, shape=(4, 6, 6)), b.apply("tanh", x)),
        lambda b, x: b.apply("tanh", x),
    ),
    "product with zero": (
        lambda b, x: b.apply("hadamard", x, b.apply("zero", b.apply("tanh", x), shape=(4, 6, 6))),
        lambda b, x: b.apply("zero", x, shape=(4, 6, 6)),
    ),
    "dot product with zero": (
        lambda b, x: b.apply("dot_product", x, b.apply("zero", x, shape=(4, 6, 6))),
        lambda b, x: b.apply("zero", x, shape=(1, 6, 6)),
    ),
    "norm of zero": (
        lambda b, x: b.apply("frobenius_norm", b.apply("zero", x, shape=(4, 6, 6))),
        lambda b, x: b.apply("zero", x, shape=(4,)),
    ),
    "weight reshaped twice and moved by nothing": (
        lambda b, x: b.apply("channel_bias", x, rearranged(b)),
        lambda b, x: b.bias(x),
    ),
    "equal constants are one": (
        lambda b, x: biased_by_rows(b, x, b.apply("identity_matrix", size=2), b.apply("identity_matrix", size=2)),
        lambda b, x: biased_by_rows(b, x, *[b.apply("identity_matrix", size=2)] * 2),
    ),
    "slice of a slice": (
        lambda b, x: b.apply("channel_slice", b.apply("channel_slice", x, start=1, stop=4), start=1, stop=3),
        lambda b, x: b.apply("channel_slice", x, start=2, stop=4),
    ),
    "padded twice": (
        lambda b, x: b.apply("pad_channels", b.apply("pad_channels", x, before=4, after=0), before=4, after=8),
        lambda b, x: b.apply("pad_channels", x, before=8, after=8),
    ),
    "subsampled twice": (
        lambda b, x: b.apply("subsample", b.apply("subsample", x, stride=(2, 1)), stride=(2, 2)),
        lambda b, x: b.apply("subsample", x, stride=(4, 2)),
    ),
    "upsampled twice": (
        lambda b, x: b.apply("upsample", b.apply("upsample", x, factor=(1, 2)), factor=(2, 2)),
        lambda b, x: b.apply("upsample", x, factor=(2, 4)),
    ),
    "shifted twice the same way": (
        lambda b, x: b.apply("shift", b.apply("shift", x, offset=(0, 1)), offset=(-1, 1)),
        lambda b, x: b.apply("shift", x, offset=(-1, 2)),
    ),
    "transposed there and back": (
        lambda b, x: b.apply("transpose", b.apply("transpose", b.apply("reshape", x, shape=(4, 36)))),
        lambda b, x: b.apply("reshape", x, shape=(4, 36)),
    ),
    "two halves put together": (
        lambda b, x: b.apply(
            "concat",
            b.apply("channel_slice", b.apply("tanh", x), start=0, stop=2),
            b.apply("channel_slice", b.apply("tanh", x), start=2, stop=4),
        ),
        lambda b, x: b.apply("tanh", x),
    ),
    "maximum with zero": (
        lambda b, x: b.apply("maximum", x, b.apply("zero", x, shape=(4, 6, 6))),
        lambda b, x: b.apply("relu", x),
    ),
    "concatenation with zero": (
        lambda b, x: b.apply("concat", b.apply("zero", x, shape=(2, 6, 6)), x),
        lambda b, x: b.apply("pad_channels", x, before=2, after=0),
    ),
}
UNTOUCHED = {
    "shifted there and back": lambda b, x: b.apply("shift", b.apply("shift", x, offset=(0, 1)), offset=(0, -1)),
    "two halves exchanged": lambda b, x: b.apply(
        "concat", b.apply("channel_slice", x, start=2, stop=4), b.apply("channel_slice", x, start=0, stop=2)
    ),
    "zero minus a value": lambda b, x: b.apply("subtract", b.apply("zero", x, shape=(4, 6, 6)), x),
    "a value plus itself": lambda b, x: b.apply("add", x, x),
    "sigmoid of zero": lambda b, x: b.apply("sigmoid", b.apply("zero", x, shape=(4, 6, 6))),
    "quotient of a value and itself": lambda b, x: b.apply("divide", x, x),
    "normal density of zero": lambda b, x: b.apply("normal_density", b.apply("zero", x, shape=(4, 6, 6))),
    "a hint on a convolution": lambda b, x: b.apply("tile", b.convolution(x, 4, (1, 1)), columns=2),
    "relu of tanh": lambda b, x: b.apply("relu", b.apply("tanh", x)),
    "two filters of one shape": lambda b, x: b.apply("add", b.convolution(x, 4, (1, 1)), b.convolution(x, 4, (1, 1))),
}


@pytest.mark.parametrize(("before", "after"), REWRITES.values(), ids=REWRITES)
def test_rewrite(before, after):
    assert canonicalise(written(before)).graph == written(after)


@pytest.mark.parametrize("write", UNTOUCHED.values(), ids=UNTOUCHED)
def test_no_rule_fires_where_it_must_not(write):
    assert len(canonicalise(written(write)).graph.nodes) == len(written(write).nodes)


def test_dead_nodes_and_their_weights_go_and_those_that_stay_are_put_in_order():
    b = Builder()
    x = b.input(4, 6, 6)
    b.convolution(x, 8, (1, 1))
    bias = b.weight(4)
    scale = b.weight(4)
    b.apply("channel_bias", b.apply("channel_scale", x, scale), bias)
    canonical = canonicalise(b.graph())
    assert canonical.weights(("filter", "bias", "scale")) == ("scale", "bias")
    assert [node.op for node in canonical.graph.nodes] == ["input", "weight", "channel_scale", "weight", "channel_bias"]


def test_a_layer_absorbs_all_scales_and_one_bias_around_it():
    b = Builder()
    x = b.apply("channel_scale", b.input(4, 6, 6))
    x = b.apply("tile", b.convolution(x, 6, (3, 3), groups=2), columns=2)
    b.bias(b.apply("channel_scale", b.bias(b.apply("channel_scale", x))))
    graph = b.graph()
    canonical = canonicalise(graph)
    rng = np.random.default_rng(0)
    x, *weights = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 4, 6, 6), *graph.weight_shapes))
    assert [node.op for node in canonical.graph.nodes[2:]] == ["cross_correlation", "tile", "weight", "channel_bias"]
    found = evaluate(canonical.graph, [x], canonical.weights(weights))
    np.testing.assert_allclose(found, evaluate(graph, [x], weights), rtol=1e-4, atol=1e-5)


def test_a_vector_layer_absorbs_scales_too():
    b = Builder()
    b.apply("channel_scale", b.apply("matrix_product", b.apply("channel_scale", b.input(3)), channels=2))
    canonical = canonicalise(b.graph())
    assert [node.op for node in canonical.graph.nodes] == ["input", "weight", "matrix_product"]
    (w,) = canonical.weights((np.array([1, 2, 3]), np.ones((3, 2)), np.array([1, 10])))
    assert w.tolist() == [[1, 10], [2, 20], [3, 30]]


def shared_weight(b, x):
    scale = b.weight(4)
    return b.apply("channel_scale", b.apply("channel_scale", x, scale), scale)


def read_twice(b, x):
    convolved = b.convolution(x, 4, (1, 1))
    return b.apply("add", convolved, b.apply("channel_scale", convolved))


@pytest.mark.parametrize("write", [shared_weight, read_twice])
def test_what_something_else_reads_is_not_absorbed(write):
    assert "channel_scale" in [node.op for node in canonicalise(written(write)).graph.nodes]


def test_an_unused_input_stays_an_input():
    b = Builder()
    b.input(2, 3, 3)
    b.apply("relu", b.input(4, 6, 6))
    assert canonicalise(b.graph()).graph == b.graph()


def test_equal_structures_with_different_weights_are_ordered_by_how_they_are_used():
    def tangled(*, swapped: bool) -> OperatorGraph:
        b = Builder()
        x = b.input(4, 6, 6)
        left, right = b.convolution(x, 4, (1, 1)), b.convolution(x, 4, (1, 1))
        total = b.apply("add", *((right, left) if swapped else (left, right)))
        b.apply("subtract", total, right if swapped else left)
        return b.graph()

    assert tangled(swapped=True) != tangled(swapped=False)
    assert canonicalise(tangled(swapped=True)).graph == canonicalise(tangled(swapped=False)).graph


def test_commutative_arguments_are_sorted_and_others_are_not():
    def joined(op: str, *, swapped: bool) -> str:
        b = Builder()
        x = b.input(4, 6, 6)
        pair = (b.apply("tanh", x), b.apply("relu", x))
        b.apply(op, *(pair[::-1] if swapped else pair))
        return canonicalise(b.graph()).graph.text

    assert joined("maximum", swapped=True) == joined("maximum", swapped=False)
    assert joined("subtract", swapped=True) != joined("subtract", swapped=False)


def test_canonical_text_of_a_convolution_is_pinned():
    graph = written(lambda b, x: b.apply("relu", b.bias(b.convolution(x, 8, (3, 3), padding=(1, 1, 1, 1)))))
    assert canonicalise(graph).graph.text.splitlines() == [
        "v0 = input 4x6x6",
        "v1 = weight 8x4x3x3",
        "v2 = cross_correlation(v0, v1, channels=8, dilation=1x1, groups=1, kernel=3x3, padding=1x1x1x1, stride=1x1)",
        "v3 = weight 8",
        "v4 = channel_bias(v2, v3)",
        "v5 = relu(v4)",
    ]


def test_the_widest_tie_is_broken():
    nodes = [Node("input", shape=(2, 2, 2)), Node("weight", shape=(2,)), Node("weight", shape=(2,))]
    nodes += [Node("channel_bias", (0, 1)), Node("channel_bias", (0, 2))]
    nodes += [Node(op, (3, 4)) for op in ("add", "mean", "hadamard", "maximum", "minimum")]
    nodes += [Node("subtract", (5, 6)), Node("subtract", (7, 8)), Node("subtract", (9, 10)), Node("subtract", (12, 11))]
    canonical = canonicalise(OperatorGraph(tuple(nodes)))
    assert canonicalise(canonical.graph).graph == canonical.graph
    assert len(canonical.graph.nodes) == len(nodes)
