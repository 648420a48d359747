"""The fit: exact where the operator can be, low in error where the theory says so."""

import numpy as np
import pytest
import torch
from example_models import normal

from gos_adapt.finetune.capture import Activations
from gos_adapt.finetune.closed_form import solve_last_layers
from gos_adapt.finetune.fit import FitSettings, fit, relative_error, run
from gos_adapt.operators.graph import OperatorGraph
from gos_adapt.operators.seeds import seeds
from gos_adapt.operators.text import parse
from gos_adapt.operators.torch_form import TorchOperator
from gos_adapt.search.inherit import inherit

INPUT = "v0 = input 8x7x6\n"


def convolution(result, source, weight, *, channels=8, kernel="3x3", padding="1x1x1x1", groups=1, dilation="1x1"):
    return (
        f"v{result} = cross_correlation(v{source}, v{weight}, channels={channels}, dilation={dilation}, "
        f"groups={groups}, kernel={kernel}, padding={padding}, stride=1x1)\n"
    )


def operator(text):
    graph = parse(text.strip())
    assert isinstance(graph, OperatorGraph), graph
    return graph


PLAIN = INPUT + "v1 = weight 8x8x3x3\n" + convolution(2, 0, 1)
BIASED = PLAIN + "v3 = weight 8\nv4 = channel_bias(v2, v3)\n"
REPRESENTABLE = {
    "plain": PLAIN,
    "bias": BIASED,
    "relu": BIASED + "v5 = relu(v4)",
    "hinted": PLAIN + "v3 = tile(v2, columns=2)\nv4 = weight 8\nv5 = channel_bias(v3, v4)\nv6 = relu(v5)",
    "residual": BIASED + "v5 = add(v0, v4)\nv6 = relu(v5)",
    "depthwise": INPUT + "v1 = weight 8x1x3x3\n" + convolution(2, 0, 1, groups=8),
    "grouped and shuffled": INPUT
    + "v1 = weight 8x4x3x3\n"
    + convolution(2, 0, 1, groups=2)
    + "v3 = channel_shuffle(v2, groups=2)\nv4 = weight 8\nv5 = channel_bias(v3, v4)",
    "dilated": INPUT + "v1 = weight 8x8x3x3\n" + convolution(2, 0, 1, padding="2x2x2x2", dilation="2x2"),
    "concatenated": INPUT
    + "v1 = channel_slice(v0, start=0, stop=4)\nv2 = channel_slice(v0, start=4, stop=8)\nv3 = weight 4x4x3x3\n"
    + convolution(4, 1, 3, channels=4)
    + "v5 = weight 4x4x1x1\n"
    + convolution(6, 2, 5, channels=4, kernel="1x1", padding="0x0x0x0")
    + "v7 = concat(v4, v6)\nv8 = weight 8\nv9 = channel_bias(v7, v8)",
    "padded": INPUT
    + "v1 = weight 4x8x3x3\n"
    + convolution(2, 0, 1, channels=4)
    + "v3 = pad_channels(v2, after=2, before=2)\nv4 = weight 8\nv5 = channel_bias(v3, v4)",
    "flattened": INPUT + "v1 = weight 8x8x3x3\n" + convolution(2, 0, 1) + "v3 = reshape(v2, shape=336x)",
    "scaled": INPUT + "v1 = weight 8\nv2 = channel_scale(v0, v1)\nv3 = weight 8\nv4 = channel_bias(v2, v3)",
    "linear": "v0 = input 12\nv1 = weight 12x5\nv2 = matrix_product(v0, v1, channels=5)\n"
    "v3 = weight 5\nv4 = channel_bias(v2, v3)\nv5 = relu(v4)",
}


def weights_of(graph, seed):
    return tuple(0.3 * normal(*shape, seed=seed + i) for i, shape in enumerate(graph.weight_shapes))


def activations_of(graph, n=64, seed=5):
    inputs = torch.from_numpy(normal(n, *graph.nodes[graph.inputs[0]].shape, seed=seed))
    return Activations(inputs, inputs)


@pytest.mark.parametrize("name", REPRESENTABLE)
def test_the_same_form_is_recovered_exactly_from_other_weights(name):
    graph = operator(REPRESENTABLE[name])
    teacher = TorchOperator(graph, weights_of(graph, 1))
    found = fit(graph, weights_of(graph, 100), teacher, activations_of(graph))
    assert found.relative_error < 1e-5
    assert found.method == "closed form"


def test_a_low_rank_operator_is_fitted_by_its_factors():
    factors = operator(
        INPUT
        + "v1 = weight 3x8x1x1\n"
        + convolution(2, 0, 1, channels=3, kernel="1x1", padding="0x0x0x0")
        + "v3 = weight 8x3x3x3\n"
        + convolution(4, 2, 3)
    )
    whole = operator(PLAIN)
    first, second = weights_of(factors, 3)
    product = np.einsum("rc,orhw->ochw", first[:, :, 0, 0], second)
    teacher = TorchOperator(whole, (product,))
    found = fit(factors, weights_of(factors, 50), teacher, activations_of(whole, 128), FitSettings(steps=400))
    assert found.relative_error < 0.02
    assert "gradient" in found.method


@pytest.mark.parametrize("with_bias", [True, False])
def test_two_layers_in_a_row_are_the_best_low_rank_of_the_response(with_bias):
    factors = "v0 = input 12\nv1 = weight 12x3\nv2 = matrix_product(v0, v1, channels=3)\nv3 = weight 3x10\n"
    factors += "v4 = matrix_product(v2, v3, channels=10)\n"
    graph = operator(factors + ("v5 = weight 10\nv6 = channel_bias(v4, v5)" if with_bias else ""))
    inputs = normal(400, 12, seed=1) @ normal(12, 12, seed=2) + 1  # far from white, and not about zero
    target = inputs @ normal(12, 10, seed=3) + 2 * with_bias
    start = [torch.from_numpy(weights) for weights in weights_of(graph, 9)]
    solved = solve_last_layers(
        graph, start, torch.from_numpy(inputs), torch.from_numpy(target), np.random.default_rng(0)
    )
    assert solved.optimal
    got = run(TorchOperator(graph, [weights.numpy() for weights in solved.weights]), torch.from_numpy(inputs)).numpy()
    spread = np.linalg.svd(target - with_bias * target.mean(axis=0), compute_uv=False)
    assert np.square(got - target).sum() == pytest.approx(np.square(spread[3:]).sum(), rel=1e-3)


def test_the_low_rank_of_the_response_beats_that_of_the_weight():
    whole = operator(BIASED)
    low_rank = next(seed for seed in seeds(whole) if seed.name.startswith("low_rank_out 4"))
    weights = weights_of(whole, 1)
    mixed = torch.einsum("dc,nchw->ndhw", torch.from_numpy(normal(8, 8, seed=4)), activations_of(whole, 128).inputs)
    activations, teacher = Activations(mixed, mixed), TorchOperator(whole, weights)
    found = fit(low_rank.graph, low_rank.initial(weights, None), teacher, activations, FitSettings(steps=0))
    wanted = run(teacher, mixed)
    of_weight = run(TorchOperator(low_rank.graph, low_rank.initial(weights, None)), mixed)
    assert found.method == "closed form"
    assert found.relative_error < 0.9 * relative_error(of_weight, wanted)


def test_the_best_smaller_operator_is_the_least_squares_one():
    # white inputs: the pointwise convolution nearest to a 3x3 one keeps its centre, and loses the rest's energy
    teacher_graph, point = (
        operator(PLAIN),
        operator(INPUT + "v1 = weight 8x8x1x1\n" + convolution(2, 0, 1, kernel="1x1", padding="0x0x0x0")),
    )
    (kernel,) = weights_of(teacher_graph, 1)
    found = fit(point, weights_of(point, 7), TorchOperator(teacher_graph, (kernel,)), activations_of(point, 512))
    assert np.abs(found.weights[0][:, :, 0, 0] - kernel[:, :, 1, 1]).max() < 0.1


def test_a_fit_is_never_worse_than_its_start_on_held_out_samples():
    graph = operator(REPRESENTABLE["relu"])
    weights = weights_of(graph, 1)
    found = fit(graph, weights, TorchOperator(graph, weights), activations_of(graph, 3))
    assert found.relative_error == 0.0
    assert found.method == "initial"


def test_fitting_behind_a_wrong_input_undoes_what_can_be_undone():
    graph = operator(BIASED)
    weights = weights_of(graph, 1)
    true = activations_of(graph).inputs
    found = fit(graph, weights, TorchOperator(graph, weights), Activations(0.5 * true, true))
    np.testing.assert_allclose(found.weights[0], 2 * weights[0], atol=1e-2)


@pytest.mark.parametrize(
    "rest",
    [
        "v3 = average_pool(v2, kernel=2x2, padding=0x0x0x0, stride=1x1)",  # no closed form goes through it
        "v3 = weight 1\nv4 = scale(v2, v3)",
    ],
)
def test_what_no_closed_form_reaches_is_fitted_by_gradients(rest):
    graph = operator(PLAIN + rest)
    start, teacher = weights_of(graph, 100), TorchOperator(graph, weights_of(graph, 1))
    found = fit(graph, start, teacher, activations_of(graph), FitSettings(steps=400))
    before = fit(graph, start, teacher, activations_of(graph), FitSettings(steps=0))
    assert found.method == "gradient"
    assert found.relative_error < 0.2 * before.relative_error


def test_of_two_that_are_added_the_one_with_more_weights_is_solved():
    graph = operator(PLAIN + "v3 = weight 8\nv4 = channel_scale(v0, v3)\nv5 = add(v2, v4)")
    weights = weights_of(graph, 1)
    found = fit(graph, (0 * weights[0], weights[1]), TorchOperator(graph, weights), activations_of(graph))
    assert found.relative_error < 1e-5
    assert found.method == "closed form"


@pytest.mark.parametrize(
    "rest",
    [
        "v3 = weight 8x1x3x3\n" + convolution(4, 2, 3, groups=8) + "v5 = concat(v2, v4)",
        "v3 = tanh(v2)\nv4 = add(v2, v3)",
    ],
)
def test_weights_that_act_in_two_ways_are_not_taken_for_the_optimum(rest):
    graph = operator(PLAIN + rest)
    start = [torch.from_numpy(weights) for weights in weights_of(graph, 1)]
    inputs = activations_of(graph).inputs
    target = run(TorchOperator(graph, weights_of(graph, 50)), inputs)
    assert not solve_last_layers(graph, start, inputs, target, np.random.default_rng(0)).optimal


@pytest.mark.parametrize("shape", [(8,), (8, 6), (8, 4, 3), (8, 2, 3, 2)])
def test_a_scale_for_each_channel_is_solved_whatever_the_shape(shape):
    graph = operator(f"v0 = input {'x'.join(map(str, shape))}\nv1 = weight 8\nv2 = channel_scale(v0, v1)")
    (scale,) = weights_of(graph, 1)
    found = fit(graph, (np.ones(8, np.float32),), TorchOperator(graph, (scale,)), activations_of(graph))
    np.testing.assert_allclose(found.weights[0], scale, rtol=1e-4)


def test_a_layer_below_a_computed_bias_is_fitted_by_its_closed_form():
    graph = operator(PLAIN + "v3 = weight 8\nv4 = weight 1\nv5 = weight_scale(v3, v4)\nv6 = channel_bias(v2, v5)")
    weights = weights_of(graph, 1)
    found = fit(graph, (0 * weights[0], *weights[1:]), TorchOperator(graph, weights), activations_of(graph))
    assert found.relative_error < 1e-5
    assert found.method == "closed form"


def test_scales_start_at_one_and_biases_at_zero():
    graph = operator("v0 = input 8\nv1 = weight 1\nv2 = scale(v0, v1)\nv3 = weight 8\nv4 = channel_bias(v2, v3)")
    assert [weight.tolist() for weight in inherit(graph)] == [[1], [0] * 8]


def test_an_operator_without_weights_is_only_judged():
    graph = operator(INPUT + "v1 = relu(v0)")
    found = fit(graph, (), TorchOperator(graph, ()), activations_of(graph))
    assert (found.weights, found.relative_error, found.method) == ((), 0.0, "initial")


def test_fitting_is_deterministic():
    graph, other = operator(REPRESENTABLE["relu"]), operator(REPRESENTABLE["depthwise"])
    teacher = TorchOperator(graph, weights_of(graph, 1))
    one, two = (fit(other, inherit(other), teacher, activations_of(graph)) for _ in range(2))
    assert one.relative_error == two.relative_error
    np.testing.assert_array_equal(one.weights[0], two.weights[0])


def test_one_sample_is_enough_not_to_fail():
    graph = operator(REPRESENTABLE["relu"])
    found = fit(graph, weights_of(graph, 9), TorchOperator(graph, weights_of(graph, 1)), activations_of(graph, 1))
    assert np.isfinite(found.relative_error)


def test_strided_pointwise_convolutions_train_without_touching_foreign_memory():
    # oneDNN issue 6035: in channels last this corrupts the heap, so what is captured must be in plain order
    graph = operator(
        "v0 = input 4x8x8\nv1 = weight 8x4x1x1\nv2 = cross_correlation(v0, v1, channels=8, dilation=1x1, groups=1, "
        "kernel=1x1, padding=0x0x0x0, stride=2x1)\nv3 = relu(v2)"
    )
    inputs = torch.from_numpy(normal(64, 4, 8, 8)).contiguous(memory_format=torch.channels_last).contiguous()
    teacher = TorchOperator(graph, weights_of(graph, 1))
    assert fit(graph, weights_of(graph, 9), teacher, Activations(inputs, inputs)).relative_error < 1e-5


def test_relative_error_by_hand():
    wanted = torch.tensor([[1.0], [3.0]])
    assert relative_error(wanted, wanted) == 0.0
    assert relative_error(torch.tensor([[2.0], [2.0]]), wanted) == pytest.approx(1.0)
    assert relative_error(torch.tensor([[1.0], [2.0]]), wanted) == pytest.approx(0.5)


def test_running_in_batches_is_running():
    graph = operator(REPRESENTABLE["relu"])
    module = TorchOperator(graph, weights_of(graph, 1))
    inputs = activations_of(graph, 150).inputs
    assert torch.allclose(run(module, inputs), module(inputs))
