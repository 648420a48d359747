from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from example_result import (
    ALL,
    beaten,
    example_result,
    failed,
    measured,
    without_int8,
    without_replacements,
    without_task,
)

from gos_adapt.environment import read_environment
from gos_adapt.errors import RunFolderError
from gos_adapt.quantities import Count
from gos_adapt.result import Measured, Result, SpeedUp, read_result

GOLDEN_KEYS = Path(__file__).parent / "result_keys.txt"
UNMEASURED = failed("nothing ran").to_json()


def paths(form: Any, prefix: str = "") -> set[str]:
    """Every key path of a JSON value; entries of a list share one."""
    if isinstance(form, dict):
        return {path for key, entry in form.items() for path in paths(entry, f"{prefix}.{key}")}
    if isinstance(form, list) and form:
        return {path for entry in form for path in paths(entry, f"{prefix}[]")}
    return {prefix.lstrip(".")}


@pytest.mark.parametrize("name", ALL)
def test_a_result_survives_its_file_form(name: str) -> None:
    result = ALL[name]()
    text = json.dumps(result.to_json(), allow_nan=False)
    assert Result.from_json(json.loads(text)) == result


def test_the_schema_holds_exactly_the_documented_keys() -> None:
    keys = "\n".join(sorted(paths(example_result().to_json())))
    assert keys == GOLDEN_KEYS.read_text(encoding="utf-8").strip()


def test_every_number_in_the_file_carries_its_kind() -> None:
    form = example_result().to_json()
    assert form["latency"]["adapted"]["kind"] == "measured"
    assert form["accuracy"]["adapted"] == {"kind": "measured", "value": 0.9132, "unit": "fraction"}
    assert form["macs"]["before"] == {"kind": "counted", "value": 40_551_040, "unit": "mac"}


def test_what_is_derived_is_computed_again_when_read() -> None:
    form = example_result().to_json()
    form["derived"] = {"verdict": "100x faster than everything."}
    assert Result.from_json(form).verdict == example_result().verdict


def test_speed_up_is_the_ratio_of_medians_and_of_best_samples() -> None:
    latency = replace(example_result().latency, original=measured(4.0, 6.0, 8.0), adapted=measured(2.0, 4.0, 5.0))
    assert latency.speed_up("original") == SpeedUp(best=pytest.approx(2.0), median=pytest.approx(1.5))


def test_a_missing_baseline_has_no_speed_up_and_is_never_the_best() -> None:
    latency = without_int8().latency
    assert latency.speed_up("onnxruntime_int8") is None
    assert latency.best_baseline == "onnxruntime_fp32"
    nothing = failed("no")
    assert replace(latency, original=nothing, onnxruntime_fp32=nothing).best_baseline is None


def test_accuracy_lost_follows_the_metric_direction() -> None:
    accuracy = example_result().accuracy
    assert accuracy
    assert accuracy.lost == pytest.approx(0.004)
    assert replace(accuracy, higher_is_better=False).lost == pytest.approx(-0.004)


def test_profile_gap_and_amdahl_bound_by_hand() -> None:
    result = example_result()
    # 399 µs of kernels, 420 µs whole; chosen: 3 x 35.2 + 61.2 = 166.8 µs
    assert result.profile.gap == pytest.approx(399 / 420 - 1)
    assert result.amdahl_bound == pytest.approx(399 / (399 - 166.8))
    free = replace(result, profile=replace(result.profile, kernels=Measured(0.0001, "s")))
    assert free.amdahl_bound is None
    unknown = replace(result, profile=replace(result.profile, kernels=None))
    assert (unknown.profile.gap, unknown.amdahl_bound) == (None, None)


def test_overlapping_sites_count_once_in_the_amdahl_bound() -> None:
    result = example_result()
    layer, *_, branch = result.sites
    both = replace(result, sites=(replace(layer, overlaps=(branch.name,)), replace(branch, overlaps=(layer.name,))))
    assert both.amdahl_bound == pytest.approx(399 / (399 - 61.2))


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (
            example_result(),
            "1.40x faster than the compiled original (0.420 ms → 0.300 ms), 0.4 points of top-1 lost; "
            "1.10x faster than ONNX Runtime fp32.",
        ),
        (
            beaten(),
            "1.20x slower than ONNX Runtime fp32; 1.40x faster than the compiled original (0.420 ms → 0.300 ms), "
            "0.4 points of top-1 lost.",
        ),
        (
            without_task(),
            "1.40x faster than the compiled original (0.420 ms → 0.300 ms), accuracy not measured (no task); "
            "1.10x faster than ONNX Runtime fp32.",
        ),
        (
            without_replacements(),
            "1.27x slower than ONNX Runtime fp32; nothing to gain: no site is worth replacing, "
            "and the compiled original is delivered (0.420 ms).",
        ),
        (
            ALL["without_feasible_candidate"](),
            "1.27x slower than ONNX Runtime fp32; nothing was replaced: no candidate met the constraints, "
            "and the compiled original is delivered (0.420 ms).",
        ),
    ],
)
def test_the_verdict_says_first_what_was_not_gained(result: Result, sentence: str) -> None:
    assert result.verdict == sentence


def test_the_verdict_names_the_price_of_a_faster_int8_baseline() -> None:
    result = example_result()
    fast = replace(result, latency=replace(result.latency, onnxruntime_int8=measured(0.15, 0.15, 0.15)))
    assert fast.verdict.startswith("2.00x slower than ONNX Runtime int8 (which has 91.61 % top-1); 1.40x faster than")


def test_the_verdict_calls_a_difference_within_noise_equal() -> None:
    result = example_result()
    same = replace(result, latency=replace(result.latency, onnxruntime_fp32=measured(0.303)))
    assert same.verdict.startswith("As fast as ONNX Runtime fp32; 1.40x faster")


@pytest.mark.parametrize(
    ("asked", "reached", "clause"),
    [
        ({"speed_up": 1.4}, True, "; the 1.4x asked for is reached."),
        ({"speed_up": 1.5}, False, "The 1.5x asked for is not reached; 1.40x faster than the compiled original"),
        ({"speed_up": 1.42}, False, "The 1.42x asked for is missed by 1.4 %, within noise; 1.40x faster than"),
        ({"target_latency_s": 0.0003}, True, "; the 0.300 ms asked for is reached."),
        ({"target_latency_s": 0.00025}, False, "The 0.250 ms asked for is not reached; 1.40x faster than"),
        ({}, None, "1.40x faster than the compiled original"),
    ],
)
def test_the_verdict_says_whether_what_was_asked_for_is_reached(
    asked: dict[str, float], reached: bool | None, clause: str
) -> None:
    result = example_result()
    result = replace(result, options=replace(result.options, **asked))
    assert result.reached is reached
    assert clause in result.verdict
    assert ("asked for" in result.verdict) == (reached is not None)
    assert result.to_json()["derived"]["reached"] is reached


def test_what_is_asked_for_is_not_reached_by_leaving_the_model_as_it_is() -> None:
    result = without_replacements()
    result = replace(result, options=replace(result.options, speed_up=1.1))
    assert result.verdict.startswith("The 1.1x asked for is not reached; 1.27x slower than ONNX Runtime fp32; nothing")


def test_without_a_latency_nothing_is_said_of_what_was_asked_for() -> None:
    result = example_result()
    result = replace(result, options=replace(result.options, speed_up=1.1))
    assert replace(result, latency=replace(result.latency, original=failed("no"))).reached is None


def test_the_verdict_of_an_unmeasured_model_says_so() -> None:
    result = example_result()
    dead = replace(result, latency=replace(result.latency, adapted=failed("the device stopped answering")))
    assert dead.verdict == "No latency to report: the delivered model was not measured (the device stopped answering)."


def edited(path: str, value: Any) -> dict[str, Any]:
    """The example's JSON with one entry replaced; `path` is dotted."""
    form = json.loads(json.dumps(example_result().to_json()))
    *parents, last = path.split(".")
    place = form
    for key in parents:
        place = place[int(key)] if key.isdigit() else place[key]
    place[last] = value
    return form


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ([], "expected schema 1, got None"),
        ({"schema": 2}, "expected schema 1, got 2"),
        ({"schema": 1}, "result.json: lacks model, device"),
        (edited("model.name", 3), "result.json.model.name: expected str, got 3"),
        (edited("macs.before.kind", "measured"), "result.json.macs.before.kind: expected 'counted', got 'measured'"),
        (edited("macs.before.unit", "furlong"), "result.json.macs.before.unit: expected one of 'mac'"),
        (edited("device.threads", True), "result.json.device.threads: expected int, got True"),
        (edited("accuracy.adapted.value", float("nan")), "accuracy.adapted.value: expected float, got nan"),
        (edited("latency.adapted.samples", [-1.0]), "result.json.latency.adapted: not a Measurement"),
        (edited("latency.adapted.samples", [1e-300]), "result.json.latency.adapted: not a Measurement"),
        (edited("latency.adapted.samples", ["1"]), "result.json.latency.adapted: not a Measurement: samples[0]"),
        (
            edited("latency.adapted.samples", 5),
            "result.json.latency.adapted: not a Measurement: samples: expected list",
        ),
        (
            edited("latency.adapted.threads", "2"),
            "latency.adapted: not a Measurement: conditions.threads: expected int",
        ),
        (edited("latency.adapted.kind", "predicted"), "not a Measurement: expected kind 'measured'"),
        (
            edited("sites.0.replacement.latency", UNMEASURED | {"error": 5}),
            "result.json.sites[0].replacement.latency: not a Measurement: error: expected str, got 5",
        ),
        (edited("accuracy.metric", ""), "result.json.accuracy: the metric has no name"),
        (edited("options.target_latency_s", 0), "result.json.options: target_latency_s must be positive, got 0"),
        (edited("options.speed_up", -1.5), "result.json.options: speed_up must be positive, got -1.5"),
        (edited("options.epsilon", 10**400), "result.json.options.epsilon: expected float, got 1000"),
        (edited("stages_s.search", 1e308), "result.json.stages_s.search: expected float, got 1e+308"),
        (edited("search.0.outcomes.fit", 2**63), "result.json.search[0].outcomes.fit: expected int, got 9223"),
        (edited("sites.0.original", None), "result.json.sites[0].original: expected dict, got None"),
        (edited("model.inputs.0.shape", ["N", 1.5]), "result.json.model.inputs[0].shape[1]: expected int or str"),
        (edited("search", "x" * 1000), "result.json.search: expected list"),
    ],
)
def test_a_file_that_is_no_result_is_refused_in_one_line(form: Any, message: str) -> None:
    with pytest.raises(RunFolderError) as raised:
        Result.from_json(form)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_unknown_keys_are_ignored_so_that_the_schema_can_grow() -> None:
    assert Result.from_json(example_result().to_json() | {"novelty": 1}) == example_result()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"\x80", "not JSON"), (b"{", "not JSON"), (b"[" * 99999, "not JSON")],
)
def test_an_unreadable_file_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "result.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunFolderError, match=message):
        read_result(path)


def test_a_measured_number_must_be_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        Measured(float("inf"), "s")
    assert Count(1, "mac").kind != Measured(1.0, "s").kind


def test_the_environment_of_this_process_is_read() -> None:
    environment = read_environment()
    assert environment.cores >= 1
    assert environment.cpu
    assert environment.packages["numpy"].count(".") == 2
    assert environment.date.endswith("+00:00")
