"""The product as a person uses it: the demo, once, and everything that can be said about what it left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from compiling import random
from tiny import tiny_model, write_tiny

import gos_adapt
from gos_adapt import cli, stage_times, verify
from gos_adapt.model.load import load_model
from gos_adapt.model.sites import find_sites
from gos_adapt.operators.text import parse
from gos_adapt.result import read_result
from gos_adapt.run_folder import Journal, RunFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.rpc, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"
ARTEFACTS = {
    "adaptation.json",
    "adaptation.safetensors",
    "adapted.onnx",
    "log.txt",
    "model.json",
    "model.so",
    "original.onnx",
    "report.html",
    "result.json",
}


def run_adapt(*words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "gos_adapt.cli", *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def digits() -> Path:
    """The demo's trained network."""
    model = DIGITS / "build" / "digits.onnx"
    if not model.exists():
        subprocess.run([sys.executable, DIGITS / "train.py"], check=True, cwd=ROOT)
    return model


@pytest.fixture(scope="session")
def demo(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's run folder."""
    out = tmp_path_factory.mktemp("demo") / "run"
    run_adapt(digits, "--target", "host", "--task", DIGITS / "digits.toml", "--budget", "170s", "--out", out)
    return out


def test_the_demo_leaves_every_artefact(demo: Path) -> None:
    assert {path.name for path in demo.iterdir()} >= ARTEFACTS
    assert not list(demo.glob("*.partial*"))
    assert not list(demo.glob(".partial*"))


def test_the_demo_replaces_something_and_keeps_the_accuracy(demo: Path) -> None:
    result = read_result(demo / "result.json")
    assert result.replaced
    assert result.accuracy is not None
    assert result.accuracy.split == "test"
    assert result.accuracy.lost <= 0.01 + 0.015  # the allowance holds on selection; 400 other images add their chance
    assert result.verification.deviation.value <= result.verification.tolerance
    assert result.macs.after.value < result.macs.before.value


def test_all_contenders_were_timed_equally_often_on_equal_threads(demo: Path) -> None:
    latency = read_result(demo / "result.json").latency
    timed = [latency.adapted, *latency.baselines.values()]
    assert all(measurement.ok for measurement in timed)
    assert len({len(measurement.samples_s) for measurement in timed}) == 1
    assert len({measurement.conditions.threads for measurement in timed}) == 1


def test_originals_and_replacements_were_timed_at_the_same_time(demo: Path) -> None:
    result = read_result(demo / "result.json")
    replaced = [(site.original, site.replacement) for site in result.sites if site.replacement]
    dates = {operator.latency.conditions.date for pair in replaced for operator in pair}
    assert dates == {result.profile.whole.conditions.date}


def test_the_adapted_model_is_called_like_the_original(demo: Path, digits: Path) -> None:
    adapted, original = (onnx.load(path) for path in (demo / "adapted.onnx", digits))
    onnx.checker.check_model(adapted, full_check=True)
    for side in ("input", "output"):
        ours, theirs = (list(getattr(model.graph, side)) for model in (adapted, original))
        assert [value.name for value in ours] == [value.name for value in theirs]
    session = onnxruntime.InferenceSession(str(demo / "adapted.onnx"), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for batch in (1, 7):
        assert session.run(None, {name: random(batch, 1, 16, 16)})[0].shape == (batch, 10)


def test_the_report_and_the_log_speak_of_this_run(demo: Path) -> None:
    result = read_result(demo / "result.json")
    assert result.verdict.split("(")[0][:20] in (demo / "report.html").read_text()
    assert "search 1" in (demo / "log.txt").read_text()


def test_an_independent_check_finds_what_the_result_claims(demo: Path) -> None:
    data = DIGITS / "build" / "digits_test.npz"
    words = ["--inputs", data, "--array", "images", "--labels", "labels", "--scale", "1/255"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "recheck.py", demo, *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_adaptation_names_operators_that_can_be_read_back(demo: Path) -> None:
    form = json.loads((demo / "adaptation.json").read_text())
    text = json.dumps(form)
    assert "cross_correlation" in text
    result = read_result(demo / "result.json")
    for site in result.replaced:
        assert site.replacement is not None
        assert not isinstance(parse(site.replacement.text), gos_adapt.errors.Rejection)
        assert site.lineage


def test_the_compiled_model_takes_and_gives_arrays(demo: Path) -> None:
    cores = os.sched_getaffinity(0)
    model = gos_adapt.load_compiled(demo)
    sample = random(1, 1, 16, 16)
    output = model(sample)
    assert isinstance(output, np.ndarray)
    assert output.shape == (1, 10)
    assert os.sched_getaffinity(0) == cores, "the caller's process was tied to fewer cores"
    with pytest.raises(gos_adapt.ConfigError, match=r"takes shape \(1, 1, 16, 16\), got \(2, 1, 16, 16\)"):
        model(random(2, 1, 16, 16))
    with pytest.raises(gos_adapt.ConfigError, match="takes 1 inputs, got 2"):
        model(sample, sample)


def test_the_same_command_again_repeats_nothing_and_ends_the_same(demo: Path, digits: Path) -> None:
    before = read_result(demo / "result.json")
    records = (demo / "journal.jsonl").read_bytes()
    run_adapt(digits, "--target", "host", "--task", DIGITS / "digits.toml", "--budget", "170s", "--out", demo)
    after = read_result(demo / "result.json")
    known = keys(records)
    assert keys((demo / "journal.jsonl").read_bytes())[: len(known)] == known
    assert [key for key in keys((demo / "journal.jsonl").read_bytes())[len(known) :] if key.startswith("fit:")] == []
    assert chosen(after) == chosen(before)
    assert [group.outcomes for group in after.search] == [group.outcomes for group in before.search]


def test_another_model_is_refused_in_the_same_folder(demo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    onnx.save(tiny_model(), other)
    done = run_adapt(other, "--target", "host", "--out", demo, check=False)
    assert done.returncode == 2
    assert "holds another run" in done.stderr
    assert "Traceback" not in done.stderr


def test_report_and_bench_take_a_run(demo: Path) -> None:
    (demo / "report.html").unlink()
    done = run_adapt("report", demo)
    assert (demo / "report.html").exists()
    assert "report:" in done.stdout
    form = json.loads(run_adapt("bench", demo, "--target", "host", "--json").stdout)
    assert set(form["contenders"]) == {"original", "adapted", "onnxruntime_fp32", "onnxruntime_int8"}
    assert all(contender["latency"]["kind"] == "measured" for contender in form["contenders"].values())


def test_compile_writes_a_model_for_a_batch(digits: Path, tmp_path: Path) -> None:
    run_adapt("compile", digits, "--target", "host", "--out", tmp_path / "c", "--batch", "3")
    model = gos_adapt.load_compiled(tmp_path / "c" / "model.so")
    images = random(3, 1, 16, 16)
    session = onnxruntime.InferenceSession(str(digits), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {session.get_inputs()[0].name: images})[0]
    np.testing.assert_allclose(model(images), wanted, atol=1e-4 * np.abs(wanted).max())


def test_profile_names_every_site(digits: Path, tmp_path: Path) -> None:
    done = run_adapt("profile", digits, "--target", "host", "--out", tmp_path / "p")
    form = json.loads((tmp_path / "p" / "profile.json").read_text())
    assert set(form["sites"]) == {site.name for site in find_sites(load_model(digits, apart=False))}
    assert "whole model" in done.stdout
    assert "differs from the whole by" in done.stdout


# --- a network so small that a whole run takes seconds ---------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def words_for(tiny: Path, out: Path) -> list[str]:
    task = ["--task", str(tiny / "task.toml")]
    return [
        str(tiny / "tiny.onnx"),
        "--target",
        "host",
        *task,
        "--strategy",
        "iterative",
        "--max-sites",
        "1",
        "--epsilon",
        "0.05",
        "--out",
        str(out),
    ]


def keys(journal: bytes) -> list[str]:
    parsed = [json.loads(line[9:])[0] for line in journal.splitlines()]
    return [key for key in parsed if key not in {None, stage_times.KEY}]


def chosen(result: Any) -> list[tuple[str, str]]:
    return [(site.name, site.replacement.key) for site in result.replaced]


@pytest.fixture(scope="module")
def undisturbed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run_adapt(*words_for(tiny, out))
    return out


def killed_when(words: list[str], journal: Path, records: int) -> bool:
    """Run until the journal holds so many records, then kill -9; whether it was still running."""
    with subprocess.Popen(
        [sys.executable, "-m", "gos_adapt.cli", *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        while run.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") >= records:
                run.kill()
                run.wait()
                return True
            time.sleep(0.01)
    return False


def test_a_killed_run_continues_and_ends_like_an_undisturbed_one(tiny: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    reference = Journal(undisturbed / "journal.jsonl")
    identity = json.loads((undisturbed / "run.json").read_text())["identity"]
    timings = [
        key for key in keys((undisturbed / "journal.jsonl").read_bytes()) if key.startswith(("profile", "latency"))
    ]
    assert any(key.startswith("latency") for key in timings)
    with RunFolder.open(out, identity) as folder:  # latencies are replayed, everything else is found out again
        for key in timings:
            folder.journal.put(key, reference.get(key))
    reference.close()

    kills = 0
    rng = np.random.default_rng(7)
    while kills < 4:
        held = (out / "journal.jsonl").read_bytes().count(b"\n")
        if not killed_when(words_for(tiny, out), out / "journal.jsonl", held + int(rng.integers(2, 25))):
            break
        kills += 1
    assert kills >= 1
    run_adapt(*words_for(tiny, out))

    ours, theirs = (keys((folder / "journal.jsonl").read_bytes()) for folder in (out, undisturbed))
    assert len(ours) == len(set(ours)), "an evaluation was repeated"
    assert set(ours) == set(theirs)
    result, wanted = read_result(out / "result.json"), read_result(undisturbed / "result.json")
    assert chosen(result) == chosen(wanted)
    assert [group.outcomes for group in result.search] == [group.outcomes for group in wanted.search]


def test_ctrl_c_ends_the_run_and_its_server_and_says_how_to_go_on(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-m", "gos_adapt.cli", *words_for(tiny, out)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        while not (out / "journal.jsonl").exists() or (out / "journal.jsonl").read_bytes().count(b"\n") < 4:
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "interrupted; the same command continues" in err
    assert "Traceback" not in err


def test_without_a_task_only_the_function_preserving_is_done_and_said(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run_adapt(tiny / "tiny.onnx", "--target", "host", "--max-sites", "1", "--budget", "60s", "--out", out)
    assert "no task: only rewrites that keep the function" in " ".join(done.stderr.split())
    result = read_result(out / "result.json")
    assert result.accuracy is None
    session = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for path in (tiny / "tiny.onnx", out / "adapted.onnx")
    ]
    images = random(32, 1, 12, 12, seed=3)
    original, adapted = (s.run(None, {"x": images})[0] for s in session)
    np.testing.assert_allclose(adapted, original, atol=1e-3 * np.abs(original).max())


def test_a_failed_verification_is_exit_code_3_and_nothing_is_delivered(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(verify, "TOLERANCE", -1.0)  # which nothing can meet
    assert cli.main([*words_for(tiny, out), "--budget", "10s"]) == 3
    assert "the compiled model deviates from the adapted one" in capsys.readouterr().err
    left = {path.name for path in out.iterdir()}
    assert left.isdisjoint({"result.json", "report.html", "model.so", "adapted.onnx", "adaptation.json"})


def test_a_module_goes_in_through_python(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(800, 4))
    example = torch.randn(2, 3, 12, 12)
    config = gos_adapt.AdaptConfig(module, example_inputs=(example,), out=tmp_path / "run", max_sites=1, budget_s=30.0)
    result = gos_adapt.adapt(config)
    compiled = gos_adapt.load_compiled(config.folder)
    with torch.no_grad():
        wanted = module(example[:1]).numpy()
    np.testing.assert_allclose(compiled(example[:1].numpy()), wanted, atol=1e-3)
    assert result.verdict


@pytest.fixture
def unreadable(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "file"
    path.write_text("in the way")
    return path


def test_an_output_folder_that_is_a_file_is_refused(tiny: Path, unreadable: Path) -> None:
    done = run_adapt(*words_for(tiny, unreadable), check=False)
    assert done.returncode == 2
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert unreadable.read_text() == "in the way"


def test_nothing_of_a_run_is_left_outside_its_folder(undisturbed: Path) -> None:
    assert not [name for name in os.listdir(ROOT) if name.startswith((".partial", "library_"))]
    assert undisturbed.exists()
