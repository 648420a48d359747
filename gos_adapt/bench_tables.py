"""A benchmark as rows of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gos_adapt.bench import FP32, INT8, OURS, TVM

if TYPE_CHECKING:
    from gos_adapt.bench import Bench, Layer, Layers

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Head and rows."""

_WORDS = {FP32: "ONNX Runtime fp32", INT8: "ONNX Runtime int8", TVM: "TVM default", OURS: "ours"}
_NONE = "–"


def contender_table(bench: Bench) -> Table:
    """One row for each contender: latencies in milliseconds, ratios to ONNX Runtime fp32, deviation from it."""
    head = ("", "best ms", "median ms", "n", "ratio best", "median", "deviation")
    return head, [_contender_row(bench, name) for name in bench.entries]


def failures(bench: Bench) -> list[str]:
    """Why contenders were not measured, one line each."""
    latencies = {name: entry.latency for name, entry in bench.entries.items()}
    return [f"{_WORDS.get(name, name)}: {latency.error}" for name, latency in latencies.items() if not latency.ok]


def layer_table(layers: Layers) -> Table:
    """One row for each kernel call: latency in microseconds, share of all, operations a second, of peak, roof."""
    head = ("computes", "rule", "best µs", "share", "GFLOP/s", "of peak", "roof")
    return head, [_layer_row(layers, layer) for layer in layers.calls]


def layer_legend(layers: Layers) -> list[str]:
    """What the numbers of `layer_table` rest on."""
    peaks = layers.peaks
    lines = [
        f"peak: {peaks.flops_per_s / 1e9:.0f} GFLOP/s and {peaks.bytes_per_s / 1e9:.0f} GB/s, measured on "
        f"{peaks.conditions.device} with {peaks.conditions.threads} threads, {peaks.conditions.date}",
        "roof: GFLOP/s possible if every tensor came from or went to memory once; data in a cache may exceed it, and "
        "Winograd's convolution computes less than it is counted for",
    ]
    lines += [f"{', '.join(call.tensors)}: {call.latency.error}" for call in layers.calls if not call.latency.ok]
    if layers.gap is not None:
        lines.append(f"the sum of the kernels differs from the whole by {layers.gap:+.1%}")
    return lines


def _contender_row(bench: Bench, name: str) -> tuple[str, ...]:
    entry, ratio = bench.entries[name], bench.ratio(name)
    word = _WORDS.get(name, name)
    if not entry.latency.ok:
        return word, *[_NONE] * 6
    best, median = map("{:.2f}".format, ratio) if ratio else (_NONE, _NONE)
    return (
        word,
        f"{entry.latency.best_s * 1e3:.4f}",
        f"{entry.latency.median_s * 1e3:.4f}",
        str(len(entry.latency.samples_s)),
        best,
        median,
        _NONE if entry.deviation is None else f"{entry.deviation:.1e}",
    )


def _layer_row(layers: Layers, layer: Layer) -> tuple[str, ...]:
    names = ", ".join(layer.tensors)
    share, flops_per_s, peak_share = layers.share(layer), layer.flops_per_s, layers.peak_share(layer)
    if share is None or flops_per_s is None or peak_share is None:
        return names, layer.rule, *[_NONE] * 5
    return (
        names,
        layer.rule,
        f"{layer.latency.best_s * 1e6:.2f}",
        f"{share:.1%}",
        f"{flops_per_s / 1e9:.1f}",
        f"{peak_share:.1%}",
        f"{layers.roof(layer) / 1e9:.1f}",
    )
