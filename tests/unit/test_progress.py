from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from gos_adapt.progress import Terminal, Verbosity

if TYPE_CHECKING:
    from pathlib import Path


def run(verbosity: Verbosity, *, terminal: bool, log: Path) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    progress = Terminal(console, verbosity)
    progress.budget(lambda: 90.0)
    with progress.log_to(log), progress.stage("profile", 2) as advance:
        advance()
        progress.best("1.20x [bold]faster")
        progress.detail("kernel conv_1 timed")
        advance()
        progress.note("nothing to gain")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("verbosity", "shown", "hidden"),
    [
        ("quiet", [], ["profile", "nothing to gain"]),
        ("normal", ["profile, 2 steps ...", "best so far: 1.20x [bold]faster", "nothing to gain"], ["kernel"]),
        ("verbose", ["kernel conv_1 timed", "nothing to gain"], []),
    ],
)
def test_in_a_pipe_there_are_plain_lines(
    tmp_path: Path, verbosity: Verbosity, shown: list[str], hidden: list[str]
) -> None:
    output = run(verbosity, terminal=False, log=tmp_path / "log.txt")
    assert all(text in output for text in shown)
    assert not any(text in output for text in hidden)
    assert "\x1b" not in output


def test_on_a_terminal_the_bar_shows_steps_best_and_time_left(tmp_path: Path) -> None:
    output = run("normal", terminal=True, log=tmp_path / "log.txt")
    assert all(text in output for text in ("profile", "2/2", "1.5 min left", "best: 1.20x [bold]faster"))


@pytest.mark.parametrize("verbosity", ["quiet", "normal", "verbose"])
def test_the_log_holds_everything_with_utc_times(tmp_path: Path, verbosity: Verbosity) -> None:
    log = tmp_path / "log.txt"
    log.write_text("earlier\n")
    run(verbosity, terminal=False, log=log)
    lines = log.read_text().splitlines()
    assert lines[0] == "earlier"
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in lines[1:])
    said = [line.split(" ", 1)[1] for line in lines[1:]]
    assert said[:4] == [
        "profile: begins, 2 steps",
        "best so far: 1.20x [bold]faster",
        "kernel conv_1 timed",
        "nothing to gain",
    ]
    assert said[4].startswith("profile: ends after ")
