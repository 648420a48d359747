from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gos_adapt.errors import ConfigError
from gos_adapt.tuning import Look, Record, Store, store

ROOT = Path(__file__).parents[3]


def record(kernel: str = "k", variant: str = "v", latency_s: float | None = 1e-6, **more: Any) -> Record:
    fields = {
        "error": None if latency_s else "it crashed",
        "look": Look.LAST if latency_s else Look.FIRST,
        "date": "2026-01-01T00:00:00",
    }
    return Record(kernel, variant, latency_s, **fields | more)


def opened(path: Path, device: str = "board", schedules: str = "1") -> Store:
    return Store(path / "tuning.sqlite", device, schedules)


def test_trials_are_found_again_by_another_store_on_the_same_file(tmp_path: Path) -> None:
    records = [record(variant="a"), record(variant="b", latency_s=None), record("other")]
    with opened(tmp_path) as first:
        first.put(records)
    with opened(tmp_path) as second:
        assert sorted(second.trials("k"), key=lambda trial: trial.variant) == records[:2]
        assert second.trials("other") == records[2:]
        assert second.trials("nobody's") == []


def test_the_best_is_the_fastest_of_the_last_look(tmp_path: Path) -> None:
    with opened(tmp_path) as kept:
        kept.put([
            record(variant="lucky", latency_s=1e-6, look=Look.FIRST),
            record(variant="slower", latency_s=3e-6),
            record(variant="fastest", latency_s=2e-6),
            record(variant="crashed", latency_s=None),
        ])  # fmt: skip
        best = kept.best("k")
        assert best is not None
        assert best.variant == "fastest"


def test_what_was_timed_in_a_model_comes_before_all_that_was_timed_alone(tmp_path: Path) -> None:
    with opened(tmp_path) as kept:
        kept.put([
            record(variant="alone", latency_s=1e-6),
            record(variant="slower", latency_s=3e-6, look=Look.IN_PLACE),
            record(variant="fastest", latency_s=2e-6, look=Look.IN_PLACE),
        ])  # fmt: skip
        assert [found.variant for found in kept.finalists("k")] == ["fastest", "slower"]


def test_a_kernel_that_only_failed_has_no_best(tmp_path: Path) -> None:
    with opened(tmp_path) as kept:
        kept.put([record(latency_s=None)])
        assert kept.best("k") is None


def test_a_trial_measured_again_replaces_the_one_before(tmp_path: Path) -> None:
    with opened(tmp_path) as kept:
        for latency_s in (3e-6, 1e-6, 2e-6):
            kept.put([record(latency_s=latency_s)])
        assert kept.trials("k") == [record(latency_s=2e-6)]


@pytest.mark.parametrize("other", [{"device": "another board"}, {"schedules": "2"}])
def test_trials_of_another_device_or_of_other_schedules_are_never_seen(tmp_path: Path, other: dict[str, str]) -> None:
    with opened(tmp_path) as mine, opened(tmp_path, **other) as theirs:
        theirs.put([record(latency_s=1e-9)])
        assert (mine.trials("k"), mine.best("k")) == ([], None)
        mine.put([record(latency_s=1e-3)])
        assert theirs.best("k") == record(latency_s=1e-9)


def test_threads_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    def write(name: str) -> None:
        with opened(tmp_path) as mine:
            for i in range(20):
                mine.put([record(variant=f"{name}{i}")])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, "abcd"))
    with opened(tmp_path) as kept:
        assert {trial.variant for trial in kept.trials("k")} == {f"{name}{i}" for name in "abcd" for i in range(20)}


def test_processes_that_create_and_write_at_once_lose_nothing(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from gos_adapt.tuning.store import Record, Store\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "with Store(Path(sys.argv[1]), 'board', '1') as store:\n"
        "    for i in range(20):\n"
        "        store.put([Record('k', sys.argv[2] + str(i), 1e-6, None, True, '2026')])\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "tuning.sqlite")]
    writers = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for name in "ab"
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    with opened(tmp_path) as kept:
        assert {trial.variant for trial in kept.trials("k")} == {f"{name}{i}" for name in "ab" for i in range(20)}


def test_the_oldest_trials_are_forgotten_and_those_of_one_time_stay_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as kept:
        for year in ("2024", "2025", "2026"):
            kept.put([record(year, variant, date=year) for variant in "abcd"])
    monkeypatch.setattr(store, "KEPT", 6)
    with opened(tmp_path) as kept:
        assert [len(kept.trials(year)) for year in ("2024", "2025", "2026")] == [0, 4, 4]


@pytest.mark.parametrize("name", ["no database", "a folder", "under a file", "other tables"])
def test_what_cannot_be_a_store_is_one_line_that_names_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / "tuning.sqlite"
    if name == "no database":
        path.write_text("not a database, whatever its name says " * 50)
    elif name == "a folder":
        path.mkdir()
    elif name == "under a file":
        (tmp_path / "file").write_text("")
        path = tmp_path / "file" / "tuning.sqlite"
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("create table variants (something text)")
        connection.close()
    with pytest.raises(ConfigError) as caught:
        Store(path, "board", "1")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_with_marks_that_mean_something_in_a_url_is_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "what? a#b %20"
    with opened(folder) as kept:
        kept.put([record()])
    assert [file.name for file in folder.iterdir()] == ["tuning.sqlite"]
