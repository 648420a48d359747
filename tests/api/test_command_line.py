from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from gos_adapt import cli
from gos_adapt.errors import AdaptError, DeviceUnreachableError, VerificationError
from gos_adapt.quantities import Conditions, Measurement

ROOT = Path(__file__).parents[2]


def adapt(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_teaches_the_main_command_and_names_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = adapt(capsys, "--help")
    assert code == 0
    assert out.startswith("Usage: adapt MODEL --target DEVICE [OPTIONS]")
    options = ("--target", "--task", "--epsilon", "--max-sites", "--budget", "--seed", "--out", "--resume / --fresh")
    commands = ("profile", "compile", "bench", "devices", "report")
    assert all(word in out for word in (*options, *commands, "--quiet", "--verbose", "--version", "Examples:"))


def test_help_of_the_main_command_is_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert adapt(capsys, "model.onnx", "--help")[1] == adapt(capsys, "--help")[1]


@pytest.mark.parametrize("command", ["profile", "compile", "bench", "devices", "report"])
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = adapt(capsys, command, "--help")
    assert code == 0
    assert out.startswith(f"Usage: adapt {command}")


def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = adapt(capsys)
    assert code == 2
    assert err.startswith("Usage: adapt MODEL")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["m.onnx"], "Missing option '--target'. ('adapt --help' explains)"),
        (["m.onnx", "--target", "host", "--epsilno", "1"], "No such option '--epsilno'"),
        (["m.onnx", "n.onnx", "--target", "host"], "Got unexpected extra argument (n.onnx)"),
        (["profile", "--target", "host"], "Missing argument 'MODEL'. ('adapt profile --help' explains)"),
        (["m.onnx", "--target", "hots"], "unknown target 'hots'; did you mean host? 'adapt devices' lists all"),
        (["--target", "hots", "m.onnx"], "unknown target 'hots'"),
        (["./profile", "--target", "hots"], "unknown target 'hots'"),
        (["--", "profile", "--target", "hots"], "Missing option '--target'"),
        (["profile", "m.onnx", "--target", "hots"], "unknown target 'hots'"),
        (["compile", "m.onnx", "--target", "hots", "--out", "x"], "unknown target 'hots'"),
        (["compile", "m.onnx", "--target", "host", "--out", "x", "--batch", "0"], "0 is not in the range x>=1"),
        (["bench", "m.onnx", "--target", "hots"], "unknown target 'hots'"),
        (["m.onnx", "--target", "host", "--budget", "soon"], "a duration looks like 90s, 15m or 1h30m, got 'soon'"),
        (["m.onnx", "--target", "host", "--epsilon", "-1"], "epsilon must be a finite number of at least 0, got -1.0"),
        (["report", "no\x1bwhere"], "no where/result.json"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    code, out, err = adapt(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_devices_lists_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = adapt(capsys, "devices")
    assert code == 0
    assert "host" in out


@pytest.mark.parametrize("terminal", [False, True])
def test_a_table_keeps_long_names_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    for variable in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich takes anything for a terminal
    conditions = Conditions("host", 2, "2026-11-21T12:00:00+00:00", "test")
    cli._print_latencies({"x" * 300: Measurement((1e-3,), conditions)})
    out = capsys.readouterr().out
    assert out.count("x") == 300
    assert (out.count("\n") == 2) is not terminal  # head and row, which only a terminal breaks


def test_the_console_script_is_this_command_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"adapt": "gos_adapt.cli:main"}


def main_with_a_command_that_raises(error: BaseException, *words: str) -> int:
    @cli.commands.command("raise")
    @click.option("--fresh", is_flag=True)
    def command(**_: object) -> None:
        raise error

    try:
        return cli.main(["raise", *words])
    finally:
        del cli.commands.commands["raise"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(AdaptError("wrong\nmodel"), 2), (DeviceUnreachableError("gone"), 2), (VerificationError("they differ"), 3)],
)
def test_a_deliberate_failure_is_one_line_and_its_exit_code(
    capsys: pytest.CaptureFixture[str], error: AdaptError, code: int
) -> None:
    assert main_with_a_command_that_raises(error) == code
    assert capsys.readouterr().err == f"error: {' '.join(str(error).split())}\n"


def test_an_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_with_a_command_that_raises(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.endswith("interrupted; the same command continues\n")
    main_with_a_command_that_raises(KeyboardInterrupt(), "--fresh")  # again, it would discard what this one found
    assert capsys.readouterr().err.endswith("interrupted; the same command without --fresh continues\n")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        main_with_a_command_that_raises(ZeroDivisionError())


def test_a_reader_that_closes_the_pipe_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from gos_adapt.cli import main; sys.exit(main(['devices']))"
    try:
        closed = subprocess.run(
            [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False
        )
    finally:
        os.close(write)
    assert closed.stderr == ""
