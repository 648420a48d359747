from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from example_models import TRAINED, assert_close, model_input, normal, small_model, trained_model

from gos_adapt.model.sites import find_sites, overlaps
from gos_adapt.model.torch_executor import TorchExecutor
from gos_adapt.operators.canonical import canonicalise
from gos_adapt.operators.evaluate import evaluate

CONV = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
WEIGHTS = [("w", normal(4, 4, 3, 3)), ("b", normal(4))]
X = ("N", 4, 6, 6)


def sites_of(nodes, shape=X, outputs=("y",), constants=WEIGHTS):
    return find_sites(small_model(nodes, shape, outputs, constants))


def instructions(site):
    return [node.op for node in site.operator.nodes if node.op not in ("input", "weight")]


@pytest.mark.parametrize("name", TRAINED)
def test_every_site_of_a_trained_model_computes_what_the_model_computes(name):
    model = trained_model(name)
    sites = find_sites(model)
    names = sorted({tensor for site in sites for tensor in (site.input, site.output)})
    x = torch.from_numpy(model_input(model, batch=1))
    with torch.no_grad():
        values = TorchExecutor(model.proto).compute({model.inputs[0].name: x}, names)
    tensors = {key: np.ascontiguousarray(value.numpy()) for key, value in zip(names, values, strict=True)}
    for site in sites:
        assert_close(evaluate(site.operator, [tensors[site.input]], site.weights), tensors[site.output])
        assert canonicalise(site.operator).graph == site.operator
    assert len({site.name for site in sites}) == len(sites)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("cifar10_resnet/resnet20_cifar10", {"conv": 19, "branch": 9, "pool": 1, "linear": 1}),
        ("mlperf_tiny/resnet8_cifar10", {"conv": 7, "pointwise": 2, "branch": 3, "pool": 1, "linear": 1}),
        ("mlperf_tiny/ad_autoencoder", {"linear": 10}),
        (
            "imagenet_models/mobilenet_v2_1.0_224",
            {"conv": 1, "pointwise": 35, "depthwise": 17, "branch": 10, "pool": 1},
        ),
    ],
)
def test_every_layer_and_residual_branch_of_a_trained_model_is_a_site(name, kinds):
    assert Counter(site.kind for site in find_sites(trained_model(name))) == kinds


def test_a_layer_takes_its_bias_and_activation_with_it():
    (site,) = sites_of([("Conv", "x w b", "c", CONV), ("Relu", "c", "y", {})])
    assert (site.name, site.kind, site.input, site.nodes) == ("y", "conv", "x", ("c", "y"))
    assert instructions(site) == ["cross_correlation", "channel_bias", "relu"]
    assert [weight.shape for weight in site.weights] == [(4, 4, 3, 3), (4,)]


def test_an_activation_with_other_readers_before_it_stays_outside():
    sites = sites_of([("Conv", "x w b", "c", CONV), ("Relu", "c", "y", {})], outputs=("y", "c"))
    assert [site.nodes for site in sites] == [("c",)]


@pytest.mark.parametrize(
    ("op", "attributes", "instruction"),
    [
        ("LeakyRelu", {"alpha": 0.01}, "leaky_relu"),
        ("Sigmoid", {}, "sigmoid"),
        ("Tanh", {}, "tanh"),
        ("HardSwish", {}, "hard_swish"),
    ],
)
def test_activations_are_read_as_their_instruction(op, attributes, instruction):
    (site,) = sites_of([("Conv", "x w b", "c", CONV), (op, "c", "y", attributes)])
    assert instructions(site)[-1] == instruction
    assert dict(site.operator.nodes[-1].hyper) == ({"slope": 0.01} if instruction == "leaky_relu" else {})


@pytest.mark.parametrize(("axis", "expected"), [(1, 1), (-3, 1), (3, 0), (-1, 0)])
def test_a_softmax_over_the_channels_is_read_and_over_places_is_not(axis, expected):
    nodes = [("Conv", "x w b", "c", CONV), ("Softmax", "c", "s", {"axis": axis}), ("Add", "s x", "y", {})]
    branches = [site for site in sites_of(nodes) if site.kind == "branch"]
    assert len(branches) == expected
    assert all("softmax" in instructions(site) for site in branches)


def test_a_clip_is_relu6_or_no_site():
    nodes = [("Conv", "x w b", "c", CONV), ("Clip", "c low high", "y", {})]
    (site,) = sites_of(nodes, constants=[*WEIGHTS, ("low", np.float32(0)), ("high", np.float32(6))])
    assert instructions(site)[-1] == "relu6"
    assert not sites_of(nodes, constants=[*WEIGHTS, ("low", np.float32(0)), ("high", np.float32(5))])


def test_same_padding_is_written_out():
    (site,) = sites_of([("Conv", "x w b", "y", {"auto_pad": "SAME_UPPER", "strides": [2, 2]})])
    (hyper,) = (dict(node.hyper) for node in site.operator.nodes if node.op == "cross_correlation")
    assert hyper["padding"] == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("node", "constants", "weight"),
    [
        (("Gemm", "x w b", "y", {"transB": 1}), [("w", normal(2, 3)), ("b", normal(2))], normal(2, 3).T),
        (("Gemm", "x w b", "y", {"alpha": 2.0}), [("w", normal(3, 2)), ("b", normal(1, 2))], 2 * normal(3, 2)),
        (("MatMul", "x w", "y", {}), [("w", normal(3, 2))], normal(3, 2)),
    ],
)
def test_the_weight_of_a_product_is_stored_inputs_by_outputs(node, constants, weight):
    (site,) = sites_of([node], ("N", 3), constants=constants)
    assert site.kind == "linear"
    np.testing.assert_array_equal(site.weights[0], weight)


def test_a_matrix_product_takes_the_added_bias_and_the_activation():
    nodes = [("MatMul", "x w", "m", {}), ("Add", "b m", "a", {}), ("Relu", "a", "y", {})]
    (site,) = sites_of(nodes, ("N", 3), constants=[("w", normal(3, 2)), ("b", normal(2))])
    assert instructions(site) == ["matrix_product", "channel_bias", "relu"]


RESIDUAL = [("Conv", "x w b", "c", CONV), ("Relu", "c", "r", {}), ("Conv", "r w b", "d", CONV), ("Add", "d x", "s", {})]


def test_a_residual_branch_is_a_site_with_its_addition_and_activation():
    sites = {site.name: site for site in sites_of([*RESIDUAL, ("Relu", "s", "y", {})])}
    assert sites.keys() == {"r", "d", "y"}
    branch = sites["y"]
    assert (branch.kind, branch.input) == ("branch", "x")
    assert branch.nodes == ("c", "r", "d", "s", "y")
    assert overlaps(branch, sites["d"])
    assert not overlaps(sites["r"], sites["d"])


def test_a_branch_whose_inside_is_read_elsewhere_is_no_site():
    assert {site.name for site in sites_of(RESIDUAL, outputs=("s", "d"))} == {"r", "d"}


def test_a_shortcut_that_subsamples_and_pads_channels_belongs_to_its_branch():
    constants = [
        ("w", normal(8, 4, 3, 3)),
        ("b", normal(8)),
        ("zeros", np.zeros(2, np.int64)),
        ("ends", np.full(2, 2**62)),
        ("axes", np.array([2, 3])),
        ("steps", np.array([2, 2])),
        ("pads", np.array([0, 2, 0, 0, 0, 2, 0, 0])),
    ]
    nodes = [
        ("Conv", "x w b", "c", {**CONV, "strides": [2, 2]}),
        ("Slice", "x zeros ends axes steps", "t", {}),
        ("Pad", "t pads", "p", {}),
        ("Add", "c p", "y", {}),
    ]
    _, branch = sites_of(nodes, constants=constants)
    assert (branch.input_shape, branch.output_shape) == ((4, 6, 6), (8, 3, 3))
    assert set(instructions(branch)) == {"cross_correlation", "channel_bias", "subsample", "pad_channels", "add"}


def test_two_unrelated_operands_make_no_branch():
    assert not sites_of(
        [("Sigmoid", "x", "a", {}), ("Add", "a x", "s", {}), ("Add", "x x", "y", {})], outputs=("y", "a")
    )


def test_what_no_instruction_expresses_is_no_site():
    assert not sites_of([("AveragePool", "x", "y", {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1})])
    assert not sites_of([("MaxPool", "x", "y", {"kernel_shape": [2, 2], "dilations": [2, 2]})])
    assert not sites_of([("MatMul", "x w", "y", {})], ("N", 5, 3), constants=[("w", normal(3, 2))])
    assert not sites_of([("Conv", "x w", "y", {})], ("N", 4, 5, 5, 5), constants=[("w", normal(2, 4, 3, 3, 3))])


def test_global_pooling_is_read_with_its_flatten():
    (site,) = sites_of([("GlobalAveragePool", "x", "p", {}), ("Flatten", "p", "y", {})])
    assert (site.kind, instructions(site), site.output_shape) == ("pool", ["global_average_pool"], (4,))
