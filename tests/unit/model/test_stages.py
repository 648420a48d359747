"""Where a model's stages end."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from example_models import normal, small_model, trained_model, with_output
from example_search import CONV, residual_model
from torch import nn

from gos_adapt.model.load import load_module
from gos_adapt.model.sites import find_sites
from gos_adapt.model.stages import stage_ends


def ends(model):
    return stage_ends(model, model.outputs[0].name)


def linear_layers(*widths):
    weights = [(f"w{k}", normal(a, b, seed=k)) for k, (a, b) in enumerate(pairwise(widths))]
    names = ["x", *(f"h{k}" for k in range(len(weights) - 1)), "y"]
    nodes = [("Gemm", f"{names[k]} w{k}", names[k + 1], {}) for k in range(len(weights))]
    return with_output(small_model(nodes, ("N", widths[0]), ["y"], weights), widths[-1])


def test_a_stage_ends_where_the_size_changes():
    assert ends(residual_model()) == ("o2", "f")  # behind the blocks, of 8x8; behind the pooling


def test_the_stages_of_a_trained_network():
    model = trained_model("cifar10_resnet/resnet20_cifar10")
    shapes = {site.output: site.output_shape for site in find_sites(model)}
    assert [shapes[name] for name in ends(model)] == [(16, 32, 32), (32, 16, 16), (64, 8, 8), (64,)]


def test_vectors_of_one_length_are_a_stage():
    assert ends(linear_layers(6, 8, 8, 4, 3)) == ("h1", "h2")


def test_the_output_is_no_end():
    assert ends(linear_layers(6, 3)) == ()
    assert ends(linear_layers(6, 3, 8, 3)) == ("h1",)  # the first three numbers are not the last


def test_what_is_bypassed_is_no_end():
    """Of a network that goes down and up again, with a bridge, only what lies behind the bridge holds everything."""
    up = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        ("Conv", "x w0", "a", CONV),
        ("MaxPool", "a", "p", up),
        ("Conv", "p w1", "b", CONV),
        ("ConvTranspose", "b w2", "u", up),
        ("Concat", "u a", "j", {"axis": 1}),
        ("Conv", "j w3", "c", CONV),
        ("Conv", "c w4", "y", {**CONV, "strides": [2, 2]}),
    ]
    kernels = {"w0": (4, 3, 3, 3), "w1": (4, 4, 3, 3), "w2": (4, 4, 2, 2), "w3": (4, 8, 3, 3), "w4": (2, 4, 3, 3)}
    weights = [(name, normal(*shape, seed=k)) for k, (name, shape) in enumerate(kernels.items())]
    assert ends(with_output(small_model(nodes, ("N", 3, 8, 8), ["y"], weights), 2, 4, 4)) == ("c",)


def test_a_model_that_does_not_read_its_input_has_no_stages():
    nodes = [("Identity", "k", "y", {})]
    model = with_output(small_model(nodes, ("N", 3), ["y"], [("k", np.zeros((1, 3), np.float32))]), 3)
    assert ends(model) == ()


class Attending(nn.Module):
    """Attention that nothing bypasses, between two layers; the second reads all tokens as one matrix."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(6, 8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = self.qkv(self.embed(x)).reshape(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4)
        seen = (q @ k.transpose(-2, -1) / 2).softmax(dim=-1) @ v
        return self.out(seen.transpose(1, 2).reshape(-1, 8)).reshape(n, t, 8).mean(dim=1)


@pytest.mark.parametrize("kind", ["branch", "attention"])
def test_what_a_replacement_would_leave_out_is_no_end(kind):
    attending = load_module(Attending().eval(), (torch.from_numpy(normal(2, 5, 6)),))
    model = {"branch": residual_model(), "attention": attending}[kind]
    sites = [site for site in find_sites(model) if site.kind == kind]
    assert sites
    assert not any(name in site.nodes and name != site.output for name in ends(model) for site in sites)
    assert sites[-1].output in ends(model)


def test_features_are_an_end_whatever_computes_them():
    """Here a mean over all tokens, behind attention with a shortcut around it."""

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.attending, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            return self.head((x + self.attending(x, x, x, need_weights=False)[0]).mean(dim=1))

    model = load_module(Classifier().eval(), (torch.from_numpy(normal(2, 5, 8)),))
    head = next(node for node in model.proto.graph.node if node.output[0] == model.outputs[0].name)
    assert head.input[0] in ends(model)


def test_an_output_in_another_order_is_no_end():
    nodes = [("GlobalAveragePool", "x", "p", {}), ("Conv", "p w", "c", {}), ("Flatten", "c", "y", {})]
    model = with_output(small_model(nodes, ("N", 4, 8, 8), ["y"], [("w", normal(3, 4, 1, 1))]), 3)
    assert ends(model) == ("p",)
