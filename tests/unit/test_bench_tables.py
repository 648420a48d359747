from __future__ import annotations

import json

import pytest

from gos_adapt.bench import FP32, INT8, OURS, TVM, Bench, Entry, Layer, Layers
from gos_adapt.bench_tables import contender_table, failures, layer_legend, layer_table
from gos_adapt.cost.peaks import Peaks
from gos_adapt.environment import read_environment
from gos_adapt.quantities import Conditions, Count, Measurement

CONDITIONS = Conditions("host", 2, "2026-11-21T12:00:00+00:00", "test")


def latency(*samples_s: float) -> Measurement:
    return Measurement(samples_s, CONDITIONS)


def layer(name: str, timed: Measurement) -> Layer:
    return Layer((name, f"{name}_relu"), "tiled reduction", timed, Count(2_000_000, "flop"), Count(100_000, "byte"))


FAILED = Measurement((), CONDITIONS, "no quantiser")
LAYERS = Layers(
    (layer("conv", latency(1e-5, 3e-5)), layer("last", latency(3e-5, 4e-5))),
    Peaks(4e11, 1e10, CONDITIONS),
    -0.034,
)
BENCH = Bench(
    "small",
    {
        FP32: Entry(latency(1e-3, 2e-3, 3e-3), 0.0),
        INT8: Entry(FAILED, None),
        TVM: Entry(latency(5e-2), None),
        OURS: Entry(latency(5e-4, 3e-3, 4e-3), 2.34e-7),
    },
    LAYERS,
    read_environment(),
)


def test_a_contender_is_a_row_of_latencies_ratios_and_deviation() -> None:
    head, rows = contender_table(BENCH)
    assert head == ("", "best ms", "median ms", "n", "ratio best", "median", "deviation")
    assert rows == [
        ("ONNX Runtime fp32", "1.0000", "2.0000", "3", "1.00", "1.00", "0.0e+00"),
        ("ONNX Runtime int8", "–", "–", "–", "–", "–", "–"),
        ("TVM default", "50.0000", "50.0000", "1", "50.00", "25.00", "–"),
        ("ours", "0.5000", "3.0000", "3", "0.50", "1.50", "2.3e-07"),
    ]
    assert failures(BENCH) == ["ONNX Runtime int8: no quantiser"]


def test_without_onnx_runtime_there_are_no_ratios() -> None:
    alone = Bench("small", {FP32: Entry(FAILED, None), OURS: Entry(latency(1e-3), None)}, None, read_environment())
    assert alone.ratio(OURS) is None
    assert contender_table(alone)[1][1] == ("ours", "1.0000", "1.0000", "1", "–", "–", "–")


def test_a_kernel_is_a_row_of_its_share_and_of_what_it_reaches() -> None:
    head, rows = layer_table(LAYERS)
    assert head == ("computes", "rule", "best µs", "share", "GFLOP/s", "of peak", "roof")
    assert rows == [
        ("conv, conv_relu", "tiled reduction", "10.00", "25.0%", "200.0", "50.0%", "200.0"),
        ("last, last_relu", "tiled reduction", "30.00", "75.0%", "66.7", "16.7%", "200.0"),
    ]


def test_a_kernel_that_was_not_measured_says_why_and_has_no_share() -> None:
    broken = Layers((layer("conv", FAILED), layer("last", latency(1e-5))), LAYERS.peaks, None)
    rows = layer_table(broken)[1]
    assert rows[0] == ("conv, conv_relu", "tiled reduction", "–", "–", "–", "–", "–")
    assert rows[1][3] == "100.0%"
    assert layer_legend(broken)[2:] == ["conv, conv_relu: no quantiser"]


def test_the_legend_names_the_peaks_and_the_gap() -> None:
    peak, _, gap = layer_legend(LAYERS)
    assert "400 GFLOP/s and 10 GB/s, measured on host with 2 threads" in peak
    assert gap == "the sum of the kernels differs from the whole by -3.4%"


def test_json_holds_samples_conditions_and_si_units() -> None:
    form = json.loads(json.dumps(BENCH.to_json(), allow_nan=False))
    ours = form["contenders"][OURS]
    assert ours["latency"]["samples"] == [5e-4, 3e-3, 4e-3]
    assert ours["latency"]["threads"] == 2
    assert ours["ratio"] == {"best": 0.5, "median": 1.5}
    assert ours["deviation"] == 2.34e-7
    assert form["contenders"][INT8]["ratio"] == {"best": None, "median": None}
    first = form["layers"]["calls"][0]
    assert first["flops"] == {"kind": "counted", "unit": "flop", "value": 2_000_000}
    assert [first[key] for key in ("share", "peak_share", "roof_flops_per_s")] == pytest.approx([0.25, 0.5, 2e11])
    assert form["layers"]["peaks"]["flops_per_s"] == 4e11
