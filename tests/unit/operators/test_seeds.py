from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from gos_adapt.finetune.capture import Activations
from gos_adapt.finetune.fit import fit
from gos_adapt.operators import factors
from gos_adapt.operators.builder import Builder
from gos_adapt.operators.evaluate import evaluate
from gos_adapt.operators.seeds import seeds
from gos_adapt.operators.torch_form import TorchOperator

if TYPE_CHECKING:
    from gos_adapt.operators.graph import OperatorGraph


def convolution(c=8, o=8, kernel=(3, 3), padding=(1, 1, 1, 1), **settings) -> OperatorGraph:
    b = Builder()
    b.apply("relu", b.bias(b.convolution(b.input(c, 8, 8), o, kernel, padding=padding, **settings)))
    return b.graph()


def branch(*, stride=(1, 1), o=8) -> OperatorGraph:
    b = Builder()
    x = b.input(8, 8, 8)
    h = b.apply("relu", b.bias(b.convolution(x, o, (3, 3), stride=stride, padding=(1, 1, 1, 1))))
    h = b.bias(b.convolution(h, o, (3, 3), padding=(1, 1, 1, 1)))
    skip = x if o == 8 else b.bias(b.convolution(x, o, (1, 1), stride=stride))
    b.apply("relu", b.apply("add", h, skip))
    return b.graph()


def kinds(operator: OperatorGraph) -> set[str]:
    return {seed.name.split(" at ")[0].split(" ")[0] for seed in seeds(operator)}


def arrays(operator: OperatorGraph, rng):
    x = rng.normal(size=(2, *operator.nodes[0].shape)).astype(np.float32)
    return x, [rng.normal(size=shape).astype(np.float32) for shape in operator.weight_shapes]


def outputs(operator: OperatorGraph, name: str, weights, x):
    seed = next(seed for seed in seeds(operator) if seed.name.startswith(name))
    derived = seed.initial(weights, np.random.default_rng(1))
    return evaluate(seed.graph, [x], derived), evaluate(operator, [x], weights)


def test_a_convolution_has_every_known_relative():
    assert kinds(convolution()) == {
        *("original", "smaller_kernel", "larger_kernel", "dilated", "strided_upsampled"),
        *("low_rank_in", "low_rank_out", "bottleneck", "column_then_row"),
        *("grouped", "shuffled_grouped", "grouped_mixed", "unfolded"),
        *("depthwise_pointwise", "depthwise_pooled_pointwise"),
        *("pointwise_depthwise", "partial", "partial_mixed", "identity", "leaky_relu"),
    }


def test_relatives_that_make_no_sense_are_absent():
    assert kinds(convolution(kernel=(1, 1), padding=(0, 0, 0, 0))) == {
        *("original", "strided_upsampled", "low_rank_in", "grouped", "shuffled_grouped", "identity", "leaky_relu"),
    }
    assert kinds(convolution(groups=8)) == {
        *("original", "smaller_kernel", "larger_kernel", "dilated", "strided_upsampled"),
        *("depthwise_column_then_row", "identity", "leaky_relu"),
    }
    assert "partial" not in kinds(convolution(stride=(2, 2)))


def test_a_residual_block_can_lose_either_side_or_become_one_small_layer():
    assert {"zero", "shortcut", "first_convolution", "bottleneck", "only"} <= kinds(branch())
    assert {"zero", "shortcut", "first_convolution", "bottleneck", "only"} <= kinds(branch(stride=(2, 2), o=16))
    rng = np.random.default_rng(0)
    x, weights = arrays(branch(), rng)
    skipped, _ = outputs(branch(), "only v0", weights, x)
    np.testing.assert_array_equal(skipped, np.maximum(x, 0))


def test_single_convolution_keeps_the_branch_s_own_filters():
    rng = np.random.default_rng(0)
    _, weights = arrays(branch(), rng)
    (first,) = (seed for seed in seeds(branch()) if seed.name == "first_convolution")
    np.testing.assert_array_equal(first.initial(weights, rng)[0], weights[0])


@pytest.mark.parametrize("operator", [convolution(), branch(), branch(stride=(2, 2), o=16)])
def test_the_original_is_the_first_seed_and_computes_the_same(operator):
    x, weights = arrays(operator, np.random.default_rng(0))
    assert seeds(operator)[0].name == "original"
    seeded, expected = outputs(operator, "original", weights, x)
    np.testing.assert_allclose(seeded, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["column_then_row 8", "grouped_mixed 2"])
@pytest.mark.parametrize("settings", [{}, {"stride": (2, 2)}, {"dilation": (2, 2), "padding": (2, 2, 2, 2)}])
def test_a_factorisation_that_loses_nothing_computes_the_same(name, settings):
    """Filters of rank one in space and of block structure in channels are what these forms can hold."""
    operator = convolution(**settings)
    rng = np.random.default_rng(0)
    x, weights = arrays(operator, rng)
    weights[0] = np.einsum("oc,k,l->ockl", rng.normal(size=(8, 8)), [1.0, 2, 1], [1.0, 0, -1]).astype(np.float32)
    derived, expected = outputs(operator, name, weights, x)
    np.testing.assert_allclose(derived, expected, rtol=1e-3, atol=1e-3)


def product_of(formula: str, *shapes: tuple[int, ...]):
    """Filters that factor as the einsum `formula` says."""
    return lambda rng: np.einsum(formula, *(rng.normal(size=shape) for shape in shapes))


def masked(mask):
    return lambda rng: rng.normal(size=(8, 8, 3, 3)) * mask


STRUCTURED = {
    "depthwise_pointwise 5×5": product_of("oc,ckl->ockl", (8, 8), (8, 3, 3)),
    "depthwise_pointwise x1": product_of("oc,ckl->ockl", (8, 8), (8, 3, 3)),
    "pointwise_depthwise": product_of("oc,okl->ockl", (8, 8), (8, 3, 3)),
    "low_rank_in 4": product_of("orkl,rc->ockl", (8, 4, 3, 3), (4, 8)),
    "low_rank_out 4": product_of("or,rckl->ockl", (8, 4), (4, 8, 3, 3)),
    "bottleneck 4": product_of("or,rskl,sc->ockl", (8, 4), (4, 4, 3, 3), (4, 8)),
    "smaller_kernel 1×1": masked(np.pad([[1]], 1)),
    "dilated 3×2": masked([1, 0, 1]),
    "grouped 2": masked(np.kron(np.eye(2), np.ones((4, 4)))[:, :, None, None]),
}


@pytest.mark.parametrize(("name", "filters"), STRUCTURED.items(), ids=STRUCTURED)
def test_derived_weights_are_exact_where_the_original_has_the_structure_of_the_relative(name, filters):
    operator = convolution()
    rng = np.random.default_rng(0)
    x, weights = arrays(operator, rng)
    weights[0] = filters(rng).astype(np.float32)
    derived, expected = outputs(operator, name, weights, x)
    np.testing.assert_allclose(derived, expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("settings", [{}, {"stride": (2, 2)}, {"o": 4}, {"dilation": (2, 2), "padding": (2, 2, 2, 2)}])
@pytest.mark.parametrize("name", ["larger_kernel 5×5", "unfolded"])
def test_a_form_that_loses_nothing_computes_the_same(name, settings):
    operator = convolution(**settings)
    x, weights = arrays(operator, np.random.default_rng(0))
    derived, expected = outputs(operator, name, weights, x)
    np.testing.assert_allclose(derived, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "columns", "kept"),
    [(3, 2, [0, 2]), (5, 2, [0, 2, 4]), (5, 3, [0, 3]), (5, 4, [0, 4]), (7, 3, [0, 3, 6]), (7, 4, [1, 5])],
)
def test_dilated_columns_are_exact_where_the_others_are_zero(size, columns, kept):
    operator = convolution(kernel=(3, size), padding=(1, size // 2, 1, size // 2))
    x, weights = arrays(operator, np.random.default_rng(0))
    weights[0][:, :, :, [column for column in range(size) if column not in kept]] = 0
    derived, expected = outputs(operator, f"dilated 3×{len(kept)} d1×{columns}", weights, x)
    np.testing.assert_allclose(derived, expected, rtol=1e-4, atol=1e-4)


def test_the_outer_columns_move_apart_where_the_dilation_is_wider_than_the_filter():
    operator = convolution()
    rng = np.random.default_rng(0)
    x, weights = arrays(operator, rng)
    x[:] = rng.normal(size=(2, 8, 8, 1))  # rows of one value each: columns may stand anywhere, but for the borders
    weights[0][:, :, :, 1] = 0
    for columns in (3, 4):
        derived, expected = outputs(operator, f"dilated 3×2 d1×{columns}", weights, x)
        np.testing.assert_allclose(derived[..., 2:-2], expected[..., 2:-2], rtol=1e-4, atol=1e-4)


def test_a_pooled_depthwise_seed_filters_pools_by_the_stride_and_mixes():
    operator = convolution(stride=(2, 2))
    (seed,) = (seed for seed in seeds(operator) if seed.name.startswith("depthwise_pooled_pointwise"))
    instructions = [node for node in seed.graph.nodes if node.op not in ("input", "weight")]
    assert [node.op for node in instructions[:3]] == ["cross_correlation", "average_pool", "cross_correlation"]
    filters, pool, mix = (dict(node.hyper) for node in instructions[:3])
    assert (filters["groups"], filters["dilation"], filters["stride"]) == (8, (2, 2), (1, 1))
    assert (pool["kernel"], pool["stride"], mix["kernel"]) == ((2, 2), (2, 2), (1, 1))


def normalised() -> OperatorGraph:
    b = Builder()
    b.apply("relu", b.bias(b.apply("channel_scale", b.apply("relu", b.input(8, 8, 8)))))
    return b.graph()


def test_a_cubic_starts_as_the_scale_it_replaces():
    operator = normalised()
    x, weights = arrays(operator, np.random.default_rng(0))
    derived, expected = outputs(operator, "cubic", weights, x)
    np.testing.assert_allclose(derived, expected, rtol=1e-5, atol=1e-5)


def test_softmax_by_powers_is_nearer_the_higher_the_power():
    b = Builder()
    b.apply("softmax", b.input(8))
    operator = b.graph()
    x, _ = arrays(operator, np.random.default_rng(0))
    errors = []
    for n in (1, 2, 4):
        derived, expected = outputs(operator, f"power_softmax {n}", (), x)
        np.testing.assert_allclose(derived.sum(axis=1), 1, rtol=1e-5)
        errors.append(np.abs(derived - expected).max())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.06


FITTED = {
    "dilated 3×2 d1×2": convolution(),
    "dilated 3×2 d1×3": convolution(),
    "dilated 3×2 d1×4": convolution(),
    "larger_kernel 5×5": convolution(groups=8),
    "unfolded": convolution(),
    "depthwise_pointwise 5×5": convolution(),
    "depthwise_pooled_pointwise": convolution(stride=(2, 2)),
    "cubic": normalised(),
}


@pytest.mark.parametrize(("name", "operator"), FITTED.items(), ids=FITTED)
def test_a_seed_can_be_fitted(name, operator):
    rng = np.random.default_rng(0)
    _, weights = arrays(operator, rng)
    x = rng.normal(size=(64, *operator.nodes[0].shape)).cumsum(axis=3).cumsum(axis=2).astype(np.float32)
    (seed,) = (seed for seed in seeds(operator) if seed.name.startswith(name))
    activations = Activations(torch.from_numpy(x), torch.from_numpy(x))
    fitted = fit(seed.graph, seed.initial(weights, rng), TorchOperator(operator, weights), activations)
    assert fitted.relative_error < 1
    if name in ("larger_kernel 5×5", "unfolded", "cubic"):
        assert fitted.relative_error < 1e-6


def test_shuffled_groups_pick_the_filters_of_the_channels_they_see():
    operator = convolution(kernel=(1, 1), padding=(0, 0, 0, 0))
    x, weights = arrays(operator, np.random.default_rng(0))
    seen = np.zeros((8, 8), np.float32)
    seen[:4, [0, 4, 1, 5]] = 1  # a shuffle of two groups deals 0 4 1 5 to the first group
    seen[4:, [2, 6, 3, 7]] = 1
    weights[0] *= seen[:, :, None, None]
    derived, expected = outputs(operator, "shuffled_grouped 2", weights, x)
    np.testing.assert_allclose(derived, expected, rtol=1e-4, atol=1e-4)


def test_linear_layers_have_low_rank_relatives_of_half_a_quarter_and_an_eighth():
    b = Builder()
    b.bias(b.apply("matrix_product", b.input(64), channels=32))
    assert [seed.name for seed in seeds(b.graph())[1:]] == ["low_rank 16 at v2", "low_rank 8 at v2", "low_rank 4 at v2"]


def test_truncated_svd_fills_a_rank_beyond_the_matrix_with_zeros():
    a, b = factors.truncated_svd(np.array([[2.0, 0.0]], np.float32), 3)
    assert (a.shape, b.shape) == ((1, 3), (3, 2))
    np.testing.assert_allclose(a @ b, [[2, 0]], atol=1e-6)


def test_he_normal_has_the_variance_of_the_paper():
    drawn = factors.he_normal((64, 32, 3, 3), np.random.default_rng(0))
    assert drawn.std() == pytest.approx(np.sqrt(2 / 288), rel=0.02)
