"""Every operator the thesis found (table 4.5) can be written, and means what plain numpy says.

The references insert the zeros of a dilated filter by hand and leave the sliding to scipy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.signal import correlate, correlate2d
from scipy.special import expit

from gos_adapt.operators.builder import Builder
from gos_adapt.operators.canonical import canonicalise
from gos_adapt.operators.equation import equation
from gos_adapt.operators.evaluate import evaluate
from gos_adapt.operators.graph import MAX_EDGES, MAX_NODES, OperatorGraph
from gos_adapt.operators.onnx_form import to_onnx
from gos_adapt.operators.text import parse
from gos_adapt.operators.torch_form import TorchOperator
from gos_adapt.report import facts
from gos_adapt.report.operator_svg import operator_svg

if TYPE_CHECKING:
    from collections.abc import Callable

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Found:
    """An operator of the thesis: how it is written, and what it computes from one sample and the weights."""

    builder: Builder
    reference: Callable[..., Array]


def zeros_between(filters, rows, columns):
    """Insert `rows` and `columns` of zeros between those of each filter ``(..., kh, kw)``."""
    *outer, kh, kw = filters.shape
    wide = np.zeros((*outer, (kh - 1) * (rows + 1) + 1, (kw - 1) * (columns + 1) + 1))
    wide[..., :: rows + 1, :: columns + 1] = filters
    return wide


def slid(x, filters):
    """Dense convolution that keeps height and width, ``(c, h, w)`` by ``(o, c, kh, kw)``."""
    return np.array([sum(correlate2d(m, f, "same") for m, f in zip(x, own, strict=True)) for own in filters])


def slid_apart(x, filters):
    """The same, each channel by a filter of its own ``(c, 1, kh, kw)``."""
    return np.array([correlate2d(m, f[0], "same") for m, f in zip(x, filters, strict=True)])


def pooled(x):
    c, h, w = x.shape
    return x.reshape(c, h // 2, 2, w // 2, 2).mean(axis=(2, 4))


def pool_by_two(b, x):
    return b.apply("average_pool", x, kernel=(2, 2), stride=(2, 2), padding=(0, 0, 0, 0))


def zero_columns(count):
    b = Builder()
    x = b.input(3, 9, 13)
    b.bias(b.convolution(x, 4, (3, 3), padding=(1, count + 1, 1, count + 1), dilation=(1, count + 1)))
    return Found(b, lambda x, w, bias: slid(x, zeros_between(w, 0, count)) + bias[:, None, None])


def a_dilation_for_each_group_of_channels():
    """Dilated depthwise convolution: channels 0-1 at rate 1, 2-3 at rate 2, 4-5 at rate 3."""
    b = Builder()
    x = b.input(6, 9, 9)
    parts = [
        b.convolution(
            b.apply("channel_slice", x, start=2 * k, stop=2 * k + 2),
            2,
            (3, 3),
            padding=(k + 1,) * 4,
            dilation=(k + 1, k + 1),
            groups=2,
        )
        for k in range(3)
    ]
    b.apply("concat", b.apply("concat", parts[0], parts[1]), parts[2])
    return Found(
        b,
        lambda x, *filters: np.concatenate(
            [slid_apart(x[2 * k : 2 * k + 2], zeros_between(w, k, k)) for k, w in enumerate(filters)]
        ),
    )


def cubic_normalisation():
    """Standardise, then α x³ + β x + γ, in place of batch normalisation's β x + γ."""
    b = Builder()
    x = b.input(5, 4, 3)
    standard = b.apply("channel_scale", b.bias(x))
    cube = b.apply("channel_scale", b.apply("power", standard, exponent=3))
    b.bias(b.apply("add", cube, b.apply("channel_scale", standard)))

    def reference(x, negative_mean, inverse_deviation, alpha, beta, gamma):
        h = ((x.T + negative_mean) * inverse_deviation).T
        return (alpha * h.T**3 + beta * h.T + gamma).T

    return Found(b, reference)


def leaky_relu(slope):
    b = Builder()
    b.apply("leaky_relu", b.input(4, 3, 3), slope=slope)
    return Found(b, lambda x: np.maximum(slope * x, x))


def leaky_relu_as_a_maximum():
    """max(a x, x) with the slope a weight."""
    b = Builder()
    x = b.input(4, 3, 3)
    b.apply("maximum", b.apply("scale", x), x)
    return Found(b, lambda x, slope: np.maximum(slope * x, x))


def late_dilated_pooled():
    b = Builder()
    x = b.input(4, 8, 8)
    pool_by_two(b, b.convolution(x, 4, (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)))
    return Found(b, lambda x, w: pooled(slid(x, zeros_between(w, 1, 1))))


def late_depthwise_pooled():
    b = Builder()
    x = b.input(4, 8, 8)
    pool_by_two(b, b.convolution(x, 4, (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2), groups=4))
    return Found(b, lambda x, w: pooled(slid_apart(x, zeros_between(w, 1, 1))))


def early_plain():
    b = Builder()
    b.apply("relu", b.bias(b.convolution(b.input(3, 8, 8), 6, (5, 5), padding=(2, 2, 2, 2))))
    return Found(b, lambda x, w, bias: np.maximum(slid(x, w) + bias[:, None, None], 0))


def dilated_in_time():
    """1-D convolution of two signals with two zeros between its taps."""
    b = Builder()
    x = b.input(2, 1, 40)
    b.bias(b.convolution(x, 3, (1, 5), padding=(0, 6, 0, 6), dilation=(1, 3)))

    def reference(x, w, bias):
        taps = zeros_between(w, 0, 2)
        signals = [sum(correlate(x[c, 0], taps[o, c, 0], "same") for c in range(2)) + bias[o] for o in range(3)]
        return np.array(signals)[:, None]

    return Found(b, reference)


def gru_step():
    """In place of an LSTM's: a gated recurrent unit on 5 inputs with a state of 3 behind them.

    Reference: Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP 2014, equations 5 to 8.
    """
    b = Builder()
    both = b.input(8)
    gates = b.apply("sigmoid", b.bias(b.apply("matrix_product", both, channels=6)))
    reset, update = (b.apply("channel_slice", gates, start=3 * k, stop=3 * k + 3) for k in range(2))
    x, state = (b.apply("channel_slice", both, start=start, stop=stop) for start, stop in ((0, 5), (5, 8)))
    kept = b.apply("concat", x, b.apply("hadamard", reset, state))
    new = b.apply("tanh", b.bias(b.apply("matrix_product", kept, channels=3)))
    b.apply("add", new, b.apply("hadamard", update, b.apply("subtract", state, new)))

    def reference(both, w, a, v, c):
        reset, update = np.split(expit(both @ w + a), 2)
        new = np.tanh(np.concatenate([both[:5], reset * both[5:]]) @ v + c)
        return update * both[5:] + (1 - update) * new

    return Found(b, reference)


def tanh_mlp():
    """In place of a random forest."""
    b = Builder()
    h = b.apply("tanh", b.bias(b.apply("matrix_product", b.input(12), channels=8)))
    h = b.apply("tanh", b.bias(b.apply("matrix_product", h, channels=4)))
    b.bias(b.apply("matrix_product", h, channels=1))
    return Found(b, lambda x, v, a, w, b, u, c: np.tanh(np.tanh(x @ v + a) @ w + b) @ u + c)


def linear_smoother():
    """A weighted running mean over the 30 peaks of a spectrum."""
    b = Builder()
    b.convolution(b.input(1, 1, 30), 1, (1, 5), padding=(0, 2, 0, 2))
    return Found(b, lambda x, w: np.convolve(x[0, 0], w[0, 0, 0, ::-1], "same")[None, None])


FOUND = {
    "one zero column": zero_columns(1),
    "two zero columns": zero_columns(2),
    "three zero columns": zero_columns(3),
    "a dilation for each group of channels": a_dilation_for_each_group_of_channels(),
    "cubic normalisation": cubic_normalisation(),
    "leaky ReLU of slope 0.01": leaky_relu(0.01),
    "leaky ReLU of slope 0.03": leaky_relu(0.03),
    "leaky ReLU as a maximum": leaky_relu_as_a_maximum(),
    "late, dilated, pooled": late_dilated_pooled(),
    "late, depthwise, pooled": late_depthwise_pooled(),
    "early, plain 5x5": early_plain(),
    "dilated in time": dilated_in_time(),
    "GRU step": gru_step(),
    "tanh MLP": tanh_mlp(),
    "linear smoother": linear_smoother(),
}


@pytest.fixture(params=FOUND.values(), ids=FOUND)
def found(request):
    graph = request.param.builder.graph()
    assert isinstance(graph, OperatorGraph), graph
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *graph.nodes[graph.inputs[0]].shape)).astype(np.float32)
    weights = tuple(rng.normal(size=shape).astype(np.float32) for shape in graph.weight_shapes)
    return graph, x, weights, np.stack([request.param.reference(sample, *weights) for sample in x])


def test_it_computes_what_plain_numpy_says(found):
    graph, x, weights, expected = found
    np.testing.assert_allclose(evaluate(graph, [x], weights), expected, rtol=1e-4, atol=1e-4)
    in_torch = TorchOperator(graph, weights)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(in_torch, expected, rtol=1e-4, atol=1e-4)
    session = onnxruntime.InferenceSession(
        to_onnx(graph, weights).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_allclose(session.run(None, {"x0": x})[0], expected, rtol=1e-4, atol=1e-4)


def test_it_keeps_its_meaning_and_the_limits_in_canonical_form(found):
    graph, x, weights, expected = found
    canonical = canonicalise(graph)
    assert len(canonical.graph.nodes) <= MAX_NODES
    assert canonical.graph.edge_count <= MAX_EDGES
    computed = evaluate(canonical.graph, [x], canonical.weights(weights))
    np.testing.assert_allclose(computed, expected, rtol=1e-4, atol=1e-4)


def test_its_text_can_be_read_back_its_equation_written_and_its_graph_drawn(found):
    graph = found[0]
    parsed = parse(graph.text)
    assert isinstance(parsed, OperatorGraph)
    assert parsed.text == graph.text
    written = equation(graph)
    assert written.text.splitlines()[-1].startswith("y = ")
    assert written.latex.startswith(r"\begin{aligned}")
    drawing = facts.drawing(graph.text)
    assert drawing is not None
    assert operator_svg(drawing, "operator").count("<rect") == len(graph.nodes)


def test_the_equation_of_a_leaky_relu_is_that_of_the_thesis():
    assert equation(leaky_relu(0.03).builder.graph()).text == "y = Max(0.03*x, x)"
