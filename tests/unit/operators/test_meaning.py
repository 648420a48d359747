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
