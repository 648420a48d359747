"""Fewer channels between two layers."""

import numpy as np
import pytest

from gos_adapt.operators.builder import Builder
from gos_adapt.operators.evaluate import evaluate
from gos_adapt.operators.graph import OperatorGraph, typed
from gos_adapt.operators.narrowing import necks
from gos_adapt.operators.seeds import seeds

SAME = {"padding": (1, 1, 1, 1)}


def block(inner=8, *, groups=1, read_twice=False):
    b = Builder()
    x = b.input(4, 6, 6)
    wide = b.apply("relu", b.bias(b.convolution(x, inner, (3, 3), groups=groups, **SAME)))
    y = b.bias(b.convolution(wide, 4, (3, 3), **SAME))
    if read_twice:
        y = b.apply("add", y, b.convolution(wide, 4, (1, 1)))
    b.apply("add", y, x)
    graph = b.graph()
    assert isinstance(graph, OperatorGraph)
    return graph


def drawn(graph, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in graph.weight_shapes)


def test_dropping_channels_that_carry_nothing_changes_nothing():
    graph = block()
    weights = list(drawn(graph))
    dead = [1, 4, 6]
    weights[2][:, dead] = 0.0  # what the second convolution reads of them
    (neck,) = necks(graph)
    narrow = typed(neck.narrowed(5))
    assert isinstance(narrow, OperatorGraph)
    x = np.random.default_rng(1).standard_normal((2, 4, 6, 6)).astype(np.float32)
    kept = neck.weights(weights, 5)
    assert [w.shape for w in kept] == list(narrow.weight_shapes)
    np.testing.assert_allclose(evaluate(narrow, [x], kept), evaluate(graph, [x], weights), atol=1e-4)


@pytest.mark.parametrize("graph", [block(groups=2), block(read_twice=True)])
def test_grouped_or_shared_channels_are_not_free(graph):
    assert not list(necks(graph))


def test_two_matrix_products_have_a_neck_too():
    b = Builder()
    b.bias(
        b.apply(
            "matrix_product", b.apply("relu", b.bias(b.apply("matrix_product", b.input(6), channels=16))), channels=3
        )
    )
    graph = b.graph()
    assert isinstance(graph, OperatorGraph)
    (neck,) = necks(graph)
    narrow = typed(neck.narrowed(4))
    assert isinstance(narrow, OperatorGraph)
    assert [w.shape for w in neck.weights(drawn(graph), 4)] == list(narrow.weight_shapes)


def test_narrowed_operators_are_among_the_seeds_and_start_from_the_operators_own_filters():
    graph = block()
    weights = drawn(graph)
    seed = next(seed for seed in seeds(graph) if seed.name.startswith("narrowed to 4/8"))
    initial = seed.initial(weights, np.random.default_rng(0))
    assert [w.shape for w in initial] == list(seed.graph.weight_shapes)
    assert seed.graph.macs < 0.6 * graph.macs
    assert all((initial[0][k] == weights[0]).all(axis=(1, 2, 3)).any() for k in range(4))
