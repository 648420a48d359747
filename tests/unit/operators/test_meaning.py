"""Numbers worked by hand for what is easy to get wrong, and the same numbers in the other forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gos_adapt.operators.builder import Builder
from gos_adapt.operators.equation import equation
from gos_adapt.operators.evaluate import evaluate, fold
from gos_adapt.operators.onnx_form import to_onnx
from gos_adapt.operators.torch_form import TorchOperator

ROW = np.arange(1, 6, dtype=np.float32).reshape(1, 1, 1, 5)


def applied(op: str, x, *weights, **hyper):
    b = Builder()
    b.apply(op, b.input(*x.shape[1:]), **hyper)
    return evaluate(b.graph(), [x], weights).squeeze()


def filtered(x, w, **settings):
    b = Builder()
    b.convolution(b.input(*x.shape[1:]), w.shape[0], w.shape[2:], **settings)
    return evaluate(b.graph(), [x], [w]).ravel().tolist()


def test_cross_correlation_does_not_flip_the_filter():
    w = np.array([1, 10, 100], np.float32).reshape(1, 1, 1, 3)
    assert filtered(ROW, w) == [321, 432, 543]
    assert filtered(ROW, w, padding=(0, 1, 0, 0)) == [210, 321, 432, 543]
    assert filtered(ROW, w, stride=(1, 2)) == [321, 543]
    assert filtered(ROW, w, dilation=(1, 2)) == [531]


def test_groups_see_their_own_channels_only():
    x = np.array([1, 2, 3, 4], np.float32).reshape(1, 4, 1, 1)
    w = np.array([[1, 10], [1, 10]], np.float32).reshape(2, 2, 1, 1)
    assert filtered(x, w, groups=2) == [21, 43]


def test_padding_takes_no_part_in_pooling():
    window = {"kernel": (1, 3), "stride": (1, 2), "padding": (0, 1, 0, 1)}
    assert applied("average_pool", ROW, **window).tolist() == [1.5, 3, 4.5]
    assert applied("max_pool", -ROW, **window).tolist() == [-1, -2, -4]


def test_shift_moves_right_and_down_and_fills_with_zeros():
    assert applied("shift", ROW, offset=(0, 2)).tolist() == [0, 0, 1, 2, 3]
    assert applied("shift", ROW, offset=(0, -1)).tolist() == [2, 3, 4, 5, 0]


def test_unfold_gives_every_tap_a_copy_of_the_map():
    window = {"kernel": (1, 3), "stride": (1, 2), "padding": (0, 1, 0, 1), "dilation": (1, 1)}
    assert applied("unfold", ROW, **window).tolist() == [[0, 2, 4], [1, 3, 5], [2, 4, 0]]


def test_channel_shuffle_deals_the_groups_out():
    x = np.arange(6, dtype=np.float32).reshape(1, 6)
    assert applied("channel_shuffle", x, groups=2).tolist() == [0, 3, 1, 4, 2, 5]


def test_activations_at_known_points():
    x = np.array([[-4, -1, 0, 1, 8]], np.float32)
    assert applied("relu6", x).tolist() == [0, 0, 0, 1, 6]
    np.testing.assert_allclose(applied("leaky_relu", x, slope=0.01), [-0.04, -0.01, 0, 1, 8], rtol=1e-6)
    np.testing.assert_allclose(applied("hard_swish", x), [0, -1 / 3, 0, 2 / 3, 8], rtol=1e-6)
    np.testing.assert_allclose(applied("sigmoid", np.array([[-1e4, 0, 1e4]], np.float32)), [0, 0.5, 1])
    np.testing.assert_allclose(applied("softmax", np.array([[1e4, 1e4]], np.float32)), [0.5, 0.5])


def test_a_gradient_has_central_differences_and_one_sided_ones_at_the_ends():
    x = np.array([0, 1, 4, 9, 25], np.float32).reshape(1, 1, 1, 5)
    assert applied("gradient", x, axis=2).tolist() == [1, 2, 4, 10.5, 16]


def test_a_derivative_that_jumps_has_the_mean_of_its_sides():
    assert applied("derivative", np.array([[-1, 0, 2]], np.float32), of="relu").tolist() == [0, 0.5, 1]
    a, b = np.array([[1, 2, 3]], np.float32), np.array([[2, 2, 2]], np.float32)
    assert joined("partial_derivative", a, b, of="maximum", argument=0).tolist() == [0, 0.5, 1]
    assert joined("partial_derivative", a, b, of="maximum", argument=1).tolist() == [1, 0.5, 0]
    assert joined("partial_derivative", a, b, of="hadamard", argument=1).tolist() == [1, 2, 3]


def joined(op: str, a, b, **hyper):
    builder = Builder()
    builder.apply(op, builder.input(*a.shape[1:]), builder.input(*b.shape[1:]), **hyper)
    return evaluate(builder.graph(), [a, b], []).squeeze()


def test_the_chain_rule_at_a_known_point():
    x = np.array([[0.5]], np.float32)
    y = np.tanh(0.5)
    expected = np.exp(-y) / (1 + np.exp(-y)) ** 2 * (1 - y**2)
    np.testing.assert_allclose(applied("chain_rule", x, outer="sigmoid", inner="tanh"), expected, rtol=1e-6)


def test_a_quotient_is_exact_but_near_zero_and_zero_there():
    assert joined("divide", np.array([[3, 3, 3]], np.float32), np.array([[2, -4, 0]], np.float32)).tolist() == [
        1.5,
        -0.75,
        0,
    ]


def test_a_square_root_is_exact_from_its_least_argument_on():
    x = np.array([[4, 1e-4, 0, -4]], np.float32)
    np.testing.assert_allclose(applied("square_root", x), [2, 0.01, 0.01, 0.01], rtol=1e-6)


def test_densities_at_known_points():
    x = np.array([[0, 1, -1e4]], np.float32)
    np.testing.assert_allclose(applied("normal_density", x), [0.3989423, 0.2419707, 0], rtol=1e-6)
    np.testing.assert_allclose(applied("laplace_density", x), [0.5, 0.1839397, 0], rtol=1e-6)
    np.testing.assert_allclose(applied("logistic_density", x), [0.25, 0.1966119, 0], rtol=1e-5)


def test_bayes_rule_is_a_distribution_where_there_is_evidence():
    x = np.array([[0.5, 0.25, 0], [0, 0, 0]], np.float32)
    prior = np.array([0.25, 0.5, 0.25], np.float32)
    assert applied("bayes_rule", x, prior).tolist() == [[0.5, 0.5, 0], [0, 0, 0]]


def test_reductions_along_an_axis_keep_it():
    x = np.array([[[3, 1], [2, 8]]], np.float32)
    assert applied("sum_along", x, axis=0).tolist() == [5, 9]
    assert applied("mean_along", x, axis=1).tolist() == [2, 5]
    assert applied("maximum_along", x, axis=0).tolist() == [3, 8]
    assert applied("minimum_along", x, axis=1).tolist() == [1, 2]


def test_the_normalisation_by_a_cubic_of_the_thesis_fits_the_limits():
    b = Builder()
    z = b.apply("channel_scale", b.bias(b.input(2, 3, 3)))
    b.bias(b.apply("weighted_sum", b.apply("power", z, exponent=3), z))
    graph = b.graph()
    mean, deviation, alpha, beta, gamma = np.random.default_rng(0).uniform(0.5, 2, (5, 2)).astype(np.float32)
    x = np.random.default_rng(1).normal(size=(4, 2, 3, 3)).astype(np.float32)
    channel = (slice(None), None, None)
    standard = (x - mean[channel]) / deviation[channel]
    expected = alpha[channel] * standard**3 + beta[channel] * standard + gamma[channel]
    weights = [-mean, 1 / deviation, alpha, beta, gamma]
    np.testing.assert_allclose(evaluate(graph, [x], weights), expected, rtol=1e-4, atol=1e-5)
    assert len(graph.nodes) == 11


def test_a_dilation_of_its_own_for_each_group_of_channels_fits_the_limits():
    b = Builder()
    x = b.input(4, 7, 7)
    rates = []
    for start in (0, 2):
        part = b.apply("channel_slice", x, start=start, stop=start + 2)
        pad, rate = start // 2 + 1, (start // 2 + 1,) * 2
        rates.append(b.convolution(part, 2, (3, 3), padding=(pad,) * 4, dilation=rate, groups=2))
    b.apply("concat", *rates)
    graph = b.graph()
    x = np.random.default_rng(0).normal(size=(1, 4, 7, 7)).astype(np.float32)
    corner = np.zeros((2, 1, 3, 3), np.float32)
    corner[:, 0, 0, 0] = 1  # moves the map down and right, by one and by two
    expected = np.zeros_like(x)
    expected[:, :2, 1:, 1:] = x[:, :2, :-1, :-1]
    expected[:, 2:, 2:, 2:] = x[:, 2:, :-2, :-2]
    np.testing.assert_array_equal(evaluate(graph, [x], [corner, corner]), expected)
    assert len(graph.nodes) == 8


def test_wrong_arrays_are_refused_with_both_shapes():
    b = Builder()
    b.bias(b.input(3))
    with pytest.raises(ValueError, match=r"weights must have the shapes \(\(3,\),\), got \(\(4,\),\)"):
        evaluate(b.graph(), [np.zeros((1, 3))], [np.zeros(4)])
    with pytest.raises(ValueError, match="1 inputs expected, got 0"):
        evaluate(b.graph(), [], [np.zeros(3)])
    with pytest.raises(ValueError, match=r"input v0 must be \(n, \*\(3,\)\), got \(1, 4\)"):
        evaluate(b.graph(), [np.zeros((1, 4))], [np.zeros(3)])


def low_rank_matrix():
    b = Builder()
    x = b.input(2)
    b.apply("matrix_product", x, b.apply("weight_product", b.weight(2, 1), b.weight(1, 2)), channels=2)
    return b.graph(), (np.array([[1], [2]], np.float32), np.array([[3, 4]], np.float32))


def test_weight_products_are_folded_before_inference():
    graph, weights = low_rank_matrix()
    folded, (product,) = fold(graph, weights)
    assert product.tolist() == [[3, 4], [6, 8]]
    assert [node.op for node in folded.nodes] == ["input", "weight", "matrix_product"]
    model = to_onnx(graph, weights)
    assert [tuple(i.dims) for i in model.graph.initializer] == [(2, 2)]
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Identity"]


def test_a_convolution_takes_the_bias_that_alone_follows_it():
    def node_types(*, shared: bool) -> list[str]:
        b = Builder()
        convolved = b.convolution(b.input(4, 6, 6), 4, (1, 1))
        biased = b.bias(convolved)
        b.apply("add", biased, convolved if shared else biased)
        weights = [np.ones(shape, np.float32) for shape in b.graph().weight_shapes]
        return [node.op_type for node in to_onnx(b.graph(), weights).graph.node]

    assert node_types(shared=False) == ["Conv", "Add", "Identity"]
    assert node_types(shared=True) == ["Conv", "Reshape", "Add", "Add", "Identity"]


def test_onnx_form_has_named_inputs_and_a_dynamic_batch():
    graph, weights = low_rank_matrix()
    model = to_onnx(graph, weights)
    (given,), (result,) = model.graph.input, model.graph.output
    assert (given.name, result.name) == ("x0", "y")
    assert given.type.tensor_type.shape.dim[0].dim_param == "N"


def test_torch_weights_train_through_weight_products_and_come_back_in_order():
    graph, weights = low_rank_matrix()
    operator = TorchOperator(graph, weights)
    operator(torch.ones(1, 2)).sum().backward()
    assert [p.grad.tolist() for p in operator.parameters()] == [[[7], [7]], [[3, 3]]]
    for given, kept in zip(weights, operator.weights(), strict=True):
        np.testing.assert_array_equal(kept, given)


def test_an_equation_names_filters_biases_and_what_is_used_twice():
    b = Builder()
    x = b.input(4, 6, 6)
    h = b.bias(b.convolution(x, 4, (3, 3), padding=(1, 1, 1, 1), groups=4))
    b.apply("relu", b.apply("add", h, b.apply("relu", h)))
    assert equation(b.graph()).text == "h_1 = b + W ⋆_{3×3, g4} x\ny = Max(0, h_1 + Max(0, h_1))"


def test_element_wise_parts_are_simplified():
    b = Builder()
    x = b.input(4)
    b.apply("maximum", b.apply("relu", b.apply("add", x, x)), b.apply("mean", x, x))
    assert equation(b.graph()).text == "y = Max(0, x, 2*x)"


def test_a_product_with_a_convolution_is_unambiguous_in_every_notation():
    b = Builder()
    x = b.input(4, 6, 6)
    b.apply("hadamard", x, b.convolution(x, 4, (1, 1)))
    written = equation(b.graph())
    assert written.text == "y = x*(W ⋆_{1×1} x)"
    assert r"x \left(W \star_{\mathrm{1 \times 1}} x\right)" in written.latex
    assert (
        "<mo>(</mo><mrow><mi>W</mi><msub><mo>⋆</mo><mtext>1×1</mtext></msub><mi>x</mi></mrow><mo>)</mo>"
        in written.mathml
    )
