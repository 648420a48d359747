"""Mutation and crossover: whatever they do, the child is a legal operator of the same input and output shape."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gos_adapt.errors import Rejection
from gos_adapt.operators.canonical import canonicalise
from gos_adapt.operators.evaluate import evaluate
from gos_adapt.operators.graph import Limits, OperatorGraph, typed
from gos_adapt.operators.seeds import seeds
from gos_adapt.operators.text import parse
from gos_adapt.search.crossover import cross
from gos_adapt.search.inherit import inherit
from gos_adapt.search.mutation import MUTATIONS, mutate

reproducibly = settings(derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
CONVOLUTION = "channels=8, dilation=1x1, groups=1, kernel=3x3, padding=1x1x1x1, stride=1x1"
ORIGINALS = tuple(
    canonicalise(parse(text)).graph
    for text in (
        f"""v0 = input 8x6x6
v1 = weight 8x8x3x3
v2 = cross_correlation(v0, v1, {CONVOLUTION})
v3 = weight 8
v4 = channel_bias(v2, v3)
v5 = relu(v4)""",
        f"""v0 = input 8x6x6
v1 = weight 8x8x3x3
v2 = cross_correlation(v0, v1, {CONVOLUTION})
v3 = relu(v2)
v4 = weight 8x8x3x3
v5 = cross_correlation(v3, v4, {CONVOLUTION})
v6 = add(v0, v5)
v7 = relu(v6)""",
        """v0 = input 12
v1 = weight 12x5
v2 = matrix_product(v0, v1, channels=5)
v3 = weight 5
v4 = channel_bias(v2, v3)""",
        """v0 = input 8x6x6
v1 = max_pool(v0, kernel=2x2, padding=0x0x0x0, stride=2x2)""",
    )
)
numbers = st.integers(0, 2**32 - 1)


def assert_legal(child: OperatorGraph, parent: OperatorGraph) -> None:
    assert typed(child.nodes) == child
    assert canonicalise(child).graph.text == child.text
    assert child.output_shape == parent.output_shape
    assert [child.nodes[i].shape for i in child.inputs] == [parent.nodes[i].shape for i in parent.inputs]
    shape = child.nodes[child.inputs[0]].shape
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    weights = inherit(child)
    with np.errstate(all="ignore"):
        assert evaluate(child, [x], weights).shape == (2, *child.output_shape)


@reproducibly
@given(st.sampled_from(ORIGINALS), numbers, st.integers(1, 8))
def test_a_chain_of_mutations_stays_legal(original, seed, steps):
    rng = np.random.default_rng(seed)
    graph = original
    for _ in range(steps):
        child = mutate(graph, rng)
        if isinstance(child, Rejection):
            assert child.reason
        else:
            assert child.operator.text != graph.text
            graph = child.operator
    assert_legal(graph, original)


@reproducibly
@given(st.sampled_from(ORIGINALS), numbers)
def test_crossing_relatives_stays_legal(original, seed):
    rng = np.random.default_rng(seed)
    relatives = [relative.graph for relative in seeds(original)]
    head, tail = (relatives[int(rng.integers(len(relatives)))] for _ in range(2))
    child = cross(head, tail, rng)
    if not isinstance(child, Rejection):
        assert_legal(child.operator, original)


def test_a_child_of_two_has_the_head_of_one_and_the_tail_of_the_other():
    layer = f"cross_correlation(v{{}}, v{{}}, {CONVOLUTION})"
    head, tail = (
        canonicalise(
            parse(
                f"v0 = input 8x6x6\nv1 = weight 8x8x3x3\nv2 = {layer.format(0, 1)}\nv3 = {first}(v2)\n"
                f"v4 = weight 8x8x3x3\nv5 = {layer.format(3, 4)}\nv6 = {last}(v5)"
            )
        ).graph
        for first, last in (("tanh", "sigmoid"), ("hard_swish", "relu6"))
    )
    crossed = [cross(head, tail, np.random.default_rng(seed)) for seed in range(50)]
    children = [child.operator for child in crossed if not isinstance(child, Rejection)]
    assert len(children) > len(crossed) / 2
    for child in children:
        assert_legal(child, head)
    instructions = [[node.op for node in child.nodes] for child in children]
    assert any("tanh" in own and own[-1] == "relu6" and "hard_swish" not in own for own in instructions)


def filters(fill, *shape):
    return np.full(shape, fill, np.float32)


def two_layers(activation):
    return canonicalise(
        parse(
            f"v0 = input 8x6x6\nv1 = weight 8x8x3x3\nv2 = cross_correlation(v0, v1, {CONVOLUTION})\n"
            f"v3 = {activation}(v2)\nv4 = weight 8x8x3x3\nv5 = cross_correlation(v3, v4, {CONVOLUTION})"
        )
    ).graph


def bred(graph, wanted):
    """The first mutation of which `wanted` holds."""
    children = (mutate(graph, np.random.default_rng(seed)) for seed in range(1000))
    return next(child for child in children if not isinstance(child, Rejection) and wanted(child))


def test_what_survives_a_deletion_keeps_its_own_weights():
    child = bred(two_layers("tanh"), lambda child: child.origin == "delete node: v2 (cross_correlation)")
    (weight,) = child.weights([filters(1, 8, 8, 3, 3), filters(2, 8, 8, 3, 3)])
    assert np.all(weight == 2)


def test_a_tail_keeps_its_weights_in_a_crossover():
    head, tail = two_layers("tanh"), two_layers("sigmoid")
    crossed = (cross(head, tail, np.random.default_rng(seed)) for seed in range(1000))
    child = next(
        child
        for child in crossed
        if not isinstance(child, Rejection)
        and [node.op for node in child.operator.nodes if node.op in ("tanh", "sigmoid", "cross_correlation")]
        == ["sigmoid", "cross_correlation"]
    )
    parents = [filters(fill, 8, 8, 3, 3) for fill in (1, 2, 3, 4)]
    (weight,) = child.weights(parents)
    assert np.all(weight == 4)


def test_filters_of_another_size_keep_their_middle():
    graph = ORIGINALS[0]
    x, rng = np.ones((1, 8, 6, 6), np.float32), np.random.default_rng(0)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in graph.weight_shapes]
    larger = bred(graph, lambda child: child.origin == "change hyperparameter: kernel of v2 (3, 3) -> (5, 5)")
    np.testing.assert_allclose(
        evaluate(larger.operator, [x], larger.weights(weights)), evaluate(graph, [x], weights), rtol=1e-5
    )
    smaller = bred(graph, lambda child: child.origin == "change hyperparameter: kernel of v2 (3, 3) -> (1, 1)")
    np.testing.assert_array_equal(smaller.weights(weights)[0], weights[0][:, :, 1:2, 1:2])


def test_a_channel_that_is_new_starts_fresh():
    graph = ORIGINALS[0]
    weights = [filters(1, 8, 8, 3, 3), filters(1, 8)]
    fewer = bred(graph, lambda child: child.origin == "change hyperparameter: channels of v2 8 -> 4")
    assert np.all(fewer.weights(weights)[0] == 1)
    more = bred(graph, lambda child: child.origin == "change hyperparameter: channels of v2 8 -> 16")
    assert np.std(more.weights(weights)[0]) > 0


@reproducibly
@given(st.sampled_from(ORIGINALS), numbers)
def test_the_weights_of_a_child_have_its_shapes(original, seed):
    rng = np.random.default_rng(seed)
    child = mutate(original, rng)
    if isinstance(child, Rejection):
        return
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in original.weight_shapes]
    inherited = child.weights(weights)
    assert tuple(weight.shape for weight in inherited) == child.operator.weight_shapes
    assert all(weight.dtype == np.float32 for weight in inherited)


@reproducibly
@given(st.sampled_from(ORIGINALS), numbers)
def test_breeding_is_determined_by_the_generator(original, seed):
    one, two = (mutate(original, np.random.default_rng(seed)) for _ in range(2))
    assert one == two


def test_every_mutation_succeeds_on_some_operator():
    residual = ORIGINALS[1]
    done = {
        child.origin.split(":")[0]
        for seed in range(300)
        if not isinstance(child := mutate(residual, np.random.default_rng(seed)), Rejection)
    }
    assert done == set(MUTATIONS)


@reproducibly
@given(st.sampled_from(ORIGINALS), numbers, st.sampled_from([Limits(5, 6), Limits(12, 15), Limits(40, 50)]))
def test_what_is_bred_keeps_the_limits_it_was_given(original, seed, limits):
    rng = np.random.default_rng(seed)
    for child in (mutate(original, rng, limits), cross(original, original, rng, limits)):
        if not isinstance(child, Rejection):
            assert typed(child.operator.nodes, limits) == child.operator


def test_a_wider_limit_lets_operators_grow_beyond_the_thesis():
    rng, graph = np.random.default_rng(0), ORIGINALS[1]
    for _ in range(300):
        child = mutate(graph, rng, Limits(40, 50))
        if not isinstance(child, Rejection) and len(child.operator.nodes) >= len(graph.nodes):
            graph = child.operator
    assert 20 < len(graph.nodes) <= 40
