"""`adapt bench` as a person uses it, on a network so small that it takes seconds."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx
import pytest
from compiling import graph, random
from onnx import helper

from device_targets import DEVICES
from device_targets.session import Session
from gos_adapt import cli
from gos_adapt.bench import FP32, INT8, compare
from gos_adapt.model.load import load_model
from gos_adapt.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.rpc

FLOPS = [(2 * 8 * 9 + 1) * 16 * 12 * 12, 2 * 16 * 9 * 16 * 12 * 12]
CONTENDERS = ["onnxruntime_fp32", "onnxruntime_int8", "tvm_default", "ours"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GOS_ADAPT_CACHE", str(folder))
        yield folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["first"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["first"], ["positive"]),
        helper.make_node("Conv", ["positive", "w1"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    ]
    weights = {"w0": random(16, 8, 3, 3), "w1": random(16, 16, 3, 3)}
    path = tmp_path / "small.onnx"
    onnx.save(graph(nodes, (1, 8, 12, 12), weights, {"y": 4}), path)
    return path


def bench(capfd: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = cli.main(["bench", *map(str, words), "--target", "host"])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def test_json_holds_four_contenders_and_every_kernel(
    model: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = bench(capfd, model, "--json", "--layers", "--threads", "1")
    assert code == 0
    form = json.loads(out)
    assert list(form["contenders"]) == CONTENDERS
    for contender in form["contenders"].values():
        latency = contender["latency"]
        assert latency["n"] == len(latency["samples"]) >= 100
        assert latency["threads"] == 1
        assert contender["ratio"]["best"] == latency["best"] / form["contenders"]["onnxruntime_fp32"]["latency"]["best"]
    deviations = {name: contender["deviation"] for name, contender in form["contenders"].items()}
    assert deviations["onnxruntime_fp32"] == 0
    assert deviations["tvm_default"] < 1e-5
    assert deviations["ours"] < 1e-5
    assert 1e-5 < deviations["onnxruntime_int8"] < 1

    calls = form["layers"]["calls"]
    assert [call["tensors"] for call in calls] == [["first", "positive"], ["y"]]
    assert [call["flops"]["value"] for call in calls] == FLOPS
    assert calls[0]["traffic"]["value"] == 4 * (8 * 12 * 12 + 16 * 8 * 9 + 16 * 12 * 12)
    assert sum(call["share"] for call in calls) == pytest.approx(1)
    peaks = form["layers"]["peaks"]
    assert peaks["conditions"]["threads"] == 1
    assert all(call["peak_share"] == call["flops_per_s"] / peaks["flops_per_s"] for call in calls)
    (kept,) = cache.glob("peaks-*-1-threads-*.json")
    assert json.loads(kept.read_text()) == peaks


def test_the_table_has_a_row_for_each_contender_and_kernel(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = bench(capfd, model, "--layers", "--quiet")
    assert (code, err) == (0, "")
    number = r"\s+\d+\.\d+"
    for name in ("ONNX Runtime fp32", "ONNX Runtime int8", "TVM default", "ours"):
        assert re.search(rf"^{name}{number}{number}\s+\d+{number}{number}\s+\d\.\de[-+]\d\d", out, re.MULTILINE)
    assert re.search(rf"^first, positive\s+.*{number}\s+[\d.]+%{number}\s+[\d.]+%{number}", out, re.MULTILINE)
    assert "measured on host with" in out


def test_two_outputs_that_are_one_tensor_are_both_compared(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[1, 1]),
        helper.make_node("Identity", ["a"], ["y"]),
        helper.make_node("Identity", ["a"], ["z"]),
    ]
    onnx.save(graph(nodes, (1, 8, 4, 4), {"w": random(8, 8, 1, 1)}, {"y": 4, "z": 4}), tmp_path / "twice.onnx")
    code, out, _ = bench(capfd, tmp_path / "twice.onnx", "--json")
    assert code == 0
    for contender in json.loads(out)["contenders"].values():
        assert contender["latency"]["n"] > 0
        assert contender["deviation"] < 1


def test_a_run_has_its_original_and_adapted_model(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("original.onnx", "adapted.onnx"):
        shutil.copy(model, run / name)
    code, out, _ = bench(capfd, run, "--json")
    assert code == 0
    form = json.loads(out)
    assert list(form["contenders"]) == ["onnxruntime_fp32", "onnxruntime_int8", "original", "adapted"]
    assert form["contenders"]["adapted"]["deviation"] < 1e-5
    assert form["layers"] is None


def test_a_model_that_onnx_runtime_cannot_open_is_timed_all_the_same(model: Path) -> None:
    loaded = load_model(model)
    foreign = onnx.ModelProto()
    foreign.CopyFrom(loaded.original)
    foreign.graph.node[0].op_type, foreign.graph.node[0].domain = "Convolve", "nowhere"
    foreign.opset_import.append(helper.make_opsetid("nowhere", 1))
    with Session(DEVICES["host"]()) as session:
        neither = compare(replace(loaded, original=foreign, proto=foreign), {INT8: loaded.proto}, session, Silent())
        canonical = compare(replace(loaded, original=foreign), {INT8: loaded.proto}, session, Silent())
    assert "cannot open the model" in str(neither[FP32].latency.error)
    assert neither[FP32].deviation is None
    assert neither[INT8].latency.ok
    assert neither[INT8].deviation is None  # there is nothing to compare it with
    assert canonical[FP32].latency.ok  # ONNX Runtime runs the canonical form
    assert canonical[INT8].deviation == 0.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threads", "100000"], "host has"),
        (["--threads", "0"], "'--threads'"),
    ],
)
def test_a_thread_count_the_device_does_not_have_is_one_line(
    model: Path, words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = bench(capfd, model, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
