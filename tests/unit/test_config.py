from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gos_adapt.config import AdaptConfig, parse_duration, parse_latency
from gos_adapt.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1h30m", 5400), ("1.5h", 5400), ("1m1s", 61), (" 2m ", 120)]
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "15", "15 m", "m", "-5m", "0s", "30m1h", "1e3s", "nan", "9" * 400 + "h", "٣m\n1s"]
)
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="looks like 90s, 15m or 1h30m, got"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0.4ms", 0.4e-3), ("250us", 250e-6), ("250 µs", 250e-6), ("1.5s", 1.5), (" 2 ms ", 2e-3)]
)
def test_a_latency_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_latency(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "4", "ms", "-1ms", "1m", "nan", "1e-3s", "1ms 2us"])
def test_what_is_no_latency_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"looks like 0\.4ms, 250us or 1\.5s, got"):
        parse_latency(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "hots"}, r"unknown target 'hots'; did you mean host\? 'adapt devices' lists all"),
        ({"target": "zzzzzz"}, "host"),
        ({"epsilon": -0.1}, "epsilon must be a finite number of at least 0, got -0.1"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"epsilon": float("inf")}, "epsilon"),
        ({"max_sites": 0}, "max sites must be at least 1, got 0"),
        ({"budget_s": 0.0}, "the budget must be positive, got 0.0 s"),
        ({"budget_s": float("inf")}, "the budget must be positive"),
        ({"seed": -1}, "the seed must be from 0 to 4294967295, got -1"),
        ({"strategy": "greedy"}, "strategy must be one of iterative, global, got 'greedy'"),
        ({"strategy": "global"}, "the global strategy trains what it chose, so it needs a task"),
        ({"also_minimise": ("time",)}, "also minimised can be parameters, memory, energy, got 'time'"),
        ({"train_all": True}, "training all layers needs a task"),
        ({"speed_up": 1.0}, "the speed-up must be above 1, got 1.0"),
        ({"speed_up": float("nan")}, "the speed-up must be above 1"),
        ({"target_latency_s": 0.0}, "the target latency must be positive, got 0.0 s"),
        ({"target_latency_s": 1e-3, "speed_up": 2.0}, "not both"),
        ({"policy": "restart"}, "'resume' or 'fresh', got 'restart'"),
        ({"model": object()}, "example inputs go with a module"),
        ({"example_inputs": (1,)}, "example inputs go with a module"),
    ],
)
def test_a_wrong_option_is_one_line_with_what_was_given(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        AdaptConfig(**{"model": Path("m.onnx"), "target": "host"} | options)
    assert "\n" not in str(caught.value)


def test_the_run_folder_is_named_after_model_and_target() -> None:
    assert AdaptConfig(Path("zoo/resnet20.onnx"), "host").folder == Path("runs/resnet20-host")
    assert AdaptConfig(Path("zoo/resnet20.onnx"), "host", out=Path()).folder == Path()
