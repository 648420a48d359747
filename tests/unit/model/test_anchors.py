from __future__ import annotations

import numpy as np
import pytest
from example_models import TRAINED, trained_model
from onnx import numpy_helper

from gos_adapt.errors import Rejection
from gos_adapt.model.anchors import find_anchor, weight_digest
from gos_adapt.model.model import Replacement
from gos_adapt.model.sites import find_sites
from gos_adapt.model.splice import splice
from gos_adapt.operators.canonical import canonicalise
from gos_adapt.operators.text import parse


@pytest.mark.parametrize("name", TRAINED)
def test_every_site_is_found_in_the_model_as_given_and_told_from_all_others(name):
    model = trained_model(name)
    anchors = [find_anchor(model, site) for site in find_sites(model)]
    assert not [anchor for anchor in anchors if isinstance(anchor, Rejection)]
    assert len(set(anchors)) == len(anchors)


def test_a_layers_weight_alone_tells_it_from_all_others():
    model = trained_model("cifar10_resnet/resnet20_cifar10")
    sites = [site for site in find_sites(model) if site.kind in ("conv", "linear")]
    digests = [[node.weight for node in find_anchor(model, site).nodes if node.weight] for site in sites]
    assert all(len(weights) == 1 for weights in digests)
    assert len({weights[0] for weights in digests}) == len(sites)


def test_an_anchor_covers_what_canonicalisation_folded_away():
    model = trained_model("cifar10_resnet/resnet20_cifar10")
    first = find_anchor(model, find_sites(model)[0])
    assert [node.op_type for node in first.nodes] == ["Conv", "BatchNormalization", "Relu"]
    (stem,) = (tensor for tensor in model.original.graph.initializer if tensor.name == "stem.weight")
    assert first.nodes[0].weight == weight_digest(numpy_helper.to_array(stem))
    assert first.entries == ((0, 0),)


def test_a_branch_is_entered_where_its_input_is_read():
    model = trained_model("cifar10_resnet/resnet20_cifar10")
    branch = next(site for site in find_sites(model) if site.kind == "branch")
    anchor = find_anchor(model, branch)
    assert [(anchor.nodes[i].op_type, position) for i, position in anchor.entries] == [("Conv", 0), ("Add", 1)]


def test_a_tensor_that_the_original_lacks_is_a_rejection():
    model = trained_model("mlperf_tiny/resnet8_cifar10")
    text = """\
v0 = input 16x32x32
v1 = weight 16x1x3x3
v2 = cross_correlation(v0, v1, channels=16, dilation=1x1, groups=16, kernel=3x3, padding=1x1x1x1, stride=1x1)
v3 = weight 16x16x1x1
v4 = cross_correlation(v2, v3, channels=16, dilation=1x1, groups=1, kernel=1x1, padding=0x0x0x0, stride=1x1)"""
    separable = canonicalise(parse(text)).graph
    weights = tuple(np.ones(shape, np.float32) for shape in separable.weight_shapes)
    spliced = splice(model, [Replacement("conv_5", separable, weights)])
    inner = next(site for site in find_sites(spliced) if site.output.startswith("conv_5#1/"))
    assert isinstance(find_anchor(spliced, inner), Rejection)
