"""Self-attention is one site, however it was written, and searched from relatives that are cheaper."""

import numpy as np
import pytest
import torch
from example_models import assert_close, in_onnx_runtime, normal
from torch import nn

from gos_adapt.cost.analytical import Roofline
from gos_adapt.errors import Rejection
from gos_adapt.finetune.capture import Activations
from gos_adapt.finetune.fit import FitSettings, fit
from gos_adapt.model.load import load_module
from gos_adapt.model.model import Replacement
from gos_adapt.model.sites import find_sites
from gos_adapt.model.splice import splice
from gos_adapt.operators.seeds import seeds
from gos_adapt.operators.torch_form import TorchOperator

TOKENS, CHANNELS, HEADS = 10, 16, 4


class Fused(nn.Module):
    """Queries, keys and values from one matrix, split after a permutation: as vision transformers are written."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        match = (q @ k.transpose(-2, -1)) * (CHANNELS // HEADS) ** -0.5
        return self.out((match.softmax(dim=-1) @ v).transpose(1, 2).reshape(n, t, CHANNELS))


class Apart(nn.Module):
    """A matrix for each, torch's own attention, another scale, narrow keys."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(CHANNELS, 8), nn.Linear(CHANNELS, 8, bias=False)
        self.v, self.out = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, 12)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = (f(x).reshape(n, t, HEADS, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3)
        return self.out(y.transpose(1, 2).reshape(n, t, CHANNELS))


class OneHead(nn.Module):
    """Without an axis of heads, and without a projection of the result."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(CHANNELS, CHANNELS) for _ in range(3))
        self.out = nn.Identity()
        self.out.out_features = CHANNELS

    def forward(self, x):
        match = self.q(x) @ self.k(x).transpose(1, 2) / 3
        return match.softmax(dim=-1) @ self.v(x)


class Masked(Fused):
    """Tokens see only those before them."""

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        match = (q @ k.transpose(-2, -1)) + torch.full((t, t), -1e4).triu(1)
        return self.out((match.softmax(dim=-1) @ v).transpose(1, 2).reshape(n, t, CHANNELS))


class Block(nn.Module):
    """Normalisation, attention, shortcut, and a small head."""

    def __init__(self, attention):
        super().__init__()
        self.embed, self.norm, self.attention = nn.Linear(6, CHANNELS), nn.LayerNorm(CHANNELS), attention
        self.widen = nn.Linear(CHANNELS, attention.out.out_features)

    def forward(self, x):
        x = self.embed(x)
        y = self.widen(x) + self.attention(self.norm(x))
        return y.mean(dim=1)


def imported(attention):
    torch.manual_seed(0)
    return load_module(Block(attention()).eval(), (torch.from_numpy(normal(2, TOKENS, 6)),))


def attention_sites(model):
    return [site for site in find_sites(model) if site.kind == "attention"]


@pytest.mark.parametrize("attention", [Fused, Apart, OneHead])
def test_an_attention_is_one_site_that_computes_what_its_nodes_compute(attention):
    model = imported(attention)
    (site,) = attention_sites(model)
    assert [node.op for node in site.operator.nodes].count("attention") == 1
    rebuilt = splice(model, [Replacement(site.name, site.operator, site.weights)])
    x = normal(3, TOKENS, 6, seed=5)
    for one, other in zip(in_onnx_runtime(rebuilt.proto, x), in_onnx_runtime(model.proto, x), strict=True):
        assert_close(one, other, 1e-4)
    assert not {node.op_type for node in rebuilt.proto.graph.node} & {"Gather", "Split"}


def test_an_attention_that_looks_back_only_is_no_site():
    assert attention_sites(imported(Masked)) == []


def test_relatives_of_attention_are_cheaper_and_start_from_its_weights():
    (site,) = attention_sites(imported(Fused))
    names = ("linear_attention", "pooled_attention", "values alone", "depthwise 1×3 of the values", "low_rank_in 4")
    for name in names:
        seed = next(seed for seed in seeds(site.operator) if seed.name.startswith(name))
        weights = seed.initial(site.weights, np.random.default_rng(0))
        assert [w.shape for w in weights] == list(seed.graph.weight_shapes)
        assert not isinstance(seed.graph, Rejection)
        if name != "linear_attention":  # with as many channels as tokens it saves nothing
            assert seed.graph.macs < site.operator.macs


def test_the_arithmetic_of_attention_is_predicted():
    (site,) = attention_sites(imported(Fused))
    pooled = next(seed.graph for seed in seeds(site.operator) if seed.name.startswith("pooled_attention"))
    arithmetic = Roofline(bytes_per_s=1e15, kernel_overhead_s=0.0)
    assert arithmetic.predict(pooled).latency_s < arithmetic.predict(site.operator).latency_s


def test_a_relative_of_attention_is_fitted_behind_its_transposition():
    (site,) = attention_sites(imported(Fused))
    teacher = TorchOperator(site.operator, site.weights)
    seed = next(seed for seed in seeds(site.operator) if seed.name.startswith("values alone"))
    tokens = torch.from_numpy(normal(256, TOKENS, CHANNELS))
    initial = seed.initial(site.weights, np.random.default_rng(0))
    found = fit(seed.graph, initial, teacher, Activations(tokens, tokens), FitSettings(steps=0))
    assert "closed form" in found.method
    assert found.relative_error < 1.0
