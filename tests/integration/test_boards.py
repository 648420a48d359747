"""A board on the desk, played by this machine: the command line reaches it through an agent at an address."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from agents import agent, free_port, running_tracker
from tiny import write_tiny

from device_targets import DEVICES, host
from gos_adapt import cli

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.rpc
BOARD = "desk"


@pytest.fixture(autouse=True)
def _board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES, BOARD, lambda: replace(host(), name=BOARD, local=False))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_port()}"


def words_for(tiny: Path, address: str, out: Path) -> list[str]:
    what = [str(tiny / "tiny.onnx"), "--task", str(tiny / "task.toml"), "--target", BOARD, "--address", address]
    return [*what, "--strategy", "iterative", "--max-sites", "1", "--epsilon", "0.05", "--out", str(out)]


def test_a_model_is_adapted_to_a_board(tiny: Path, address: str, tmp_path: Path) -> None:
    with agent(BOARD, tmp_path / "work", "--listen", address):
        assert cli.main(words_for(tiny, address, tmp_path / "run")) == 0
        result = json.loads((tmp_path / "run" / "result.json").read_text())
        assert result["device"]["name"] == BOARD
        assert result["latency"]["adapted"]["device"] == BOARD
        assert "not on desk" in result["latency"]["onnxruntime_fp32"]["error"]
        words = ["bench", str(tmp_path / "run"), "--target", BOARD, "--address", address, "--json"]
        assert cli.main(words) == 0


def test_a_board_is_profiled_and_compiled_for(
    tiny: Path, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reach = ["--target", BOARD, "--address", address]
    with agent(BOARD, tmp_path / "work", "--listen", address):
        assert cli.main(["profile", str(tiny / "tiny.onnx"), *reach, "--out", str(tmp_path / "p")]) == 0
        assert json.loads((tmp_path / "p" / "profile.json").read_text())["device"] == BOARD
        assert cli.main(["compile", str(tiny / "tiny.onnx"), *reach, "--out", str(tmp_path / "c")]) == 0
    assert "schedules are guesses" not in capsys.readouterr().err


def test_a_board_from_a_tracker(tiny: Path, tmp_path: Path) -> None:
    with running_tracker() as tracker:
        place = f"127.0.0.1:{tracker.port}"
        with agent(BOARD, tmp_path / "work", "--tracker", place):
            words = ["profile", str(tiny / "tiny.onnx"), "--target", BOARD, "--tracker", place]
            assert cli.main(words) == 0


def test_a_board_that_is_unplugged_again_and_again_costs_no_result(tiny: Path, address: str, tmp_path: Path) -> None:
    over = threading.Event()
    times = 0

    def unplug() -> None:
        nonlocal times
        while not over.is_set():
            with agent(BOARD, tmp_path / "work", "--listen", address):
                over.wait(4 + 2 * times)
            times += 1
            time.sleep(0.5)

    board = threading.Thread(target=unplug)
    board.start()
    try:
        codes = [0]
        while (code := cli.main(words_for(tiny, address, tmp_path / "run"))) != 0 and len(codes) < 10:
            codes.append(code)  # what was measured when it went may end the run: the same command goes on
    finally:
        over.set()
        board.join()
    assert (code, set(codes) - {0, 2}) == (0, set())
    assert times >= 2
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["latency"]["adapted"]["samples"]


def test_a_board_that_stays_away_ends_the_run_in_one_line(
    tiny: Path, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words_for(tiny, address, tmp_path / "run"), "--device-timeout", "2s", "--quiet"]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(
        f"error: device {BOARD} did not answer when connecting ({BOARD} at {address} cannot be used"
    )


WRONG = {
    "another form": ["--target", BOARD, "--address", "9090"],
    "a port that is none": ["--target", BOARD, "--address", "board:99999"],
    "both": ["--target", BOARD, "--address", "a:1", "--tracker", "b:2"],
    "neither": ["--target", BOARD],
    "this machine": ["--target", "host", "--address", "board:9090"],
    "a key that is none": ["--target", BOARD, "--address", "board:9090", "--key", "a b"],
}


@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG)
def test_a_way_that_makes_no_sense_is_refused_in_one_line(
    words: list[str], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([str(tiny / "tiny.onnx"), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
