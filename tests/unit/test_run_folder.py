from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gos_adapt.errors import RunFolderError
from gos_adapt.run_folder import JOURNAL, Journal, RunFolder, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Clock

IDENTITY = {"model": "abc", "epsilon": 0.01}


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_second_opening_continues_the_run(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "a" / "run", IDENTITY) as run:
        run.save_json("profile.json", {"sites": [1, 2]})
        run.save_arrays("weights.safetensors", {"w": np.arange(6, dtype=np.float32).reshape(2, 3)})
        run.journal.put("site/key", {"latency_s": 0.1, "shape": (3, 3)})
    with RunFolder.open(tmp_path / "a" / "run", IDENTITY) as run:
        assert run.load_json("profile.json") == {"sites": [1, 2]}
        arrays = run.load_arrays("weights.safetensors")
        assert arrays is not None
        np.testing.assert_array_equal(arrays["w"], [[0, 1, 2], [3, 4, 5]])
        assert run.journal.get("site/key") == {"latency_s": 0.1, "shape": [3, 3]}
        assert run.load_json("result.json") is None
        assert run.load_arrays("other.safetensors") is None


def test_a_value_reads_the_same_before_and_after_a_restart(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / JOURNAL)) as journal:
        put = journal.put("k", {"shape": (1, 2), "latency_s": 1 / 3})
        assert put == journal.get("k") == {"shape": [1, 2], "latency_s": 1 / 3}
    with closing(Journal(tmp_path / JOURNAL)) as journal:
        assert journal.get("k") == put


def test_the_folder_of_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, IDENTITY).close()
    with pytest.raises(RunFolderError, match=r"epsilon 0\.01 there, 0\.05 here\).*--fresh.*--out"):
        RunFolder.open(tmp_path, IDENTITY | {"epsilon": 0.05})


def test_fresh_deletes_what_we_wrote_and_nothing_else(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, IDENTITY) as run:
        run.save_bytes("model.so", b"old")
        run.journal.put("k", 1)
    (tmp_path / "notes.txt").write_text("mine")
    with RunFolder.open(tmp_path, IDENTITY | {"epsilon": 0.05}, "fresh") as run:
        assert len(run.journal) == 0
        assert run.load_bytes("model.so") is None
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for policy in ("resume", "fresh"):
        with pytest.raises(RunFolderError, match=r"'thesis\.tex'.*is not a run folder"):
            RunFolder.open(tmp_path, IDENTITY, policy)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_forged_file_list_deletes_nothing_outside(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("x")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text('{"format": 1, "identity": {}, "files": ["../victim"]}')
    with pytest.raises(RunFolderError, match="does not describe a run"):
        RunFolder.open(folder, IDENTITY, "fresh")
    assert victim.exists()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"identity": 1, "files": []}', '{"identity": {}, "files": ["a\\u0000"]}', "[" * 100_000],
)
def test_a_damaged_run_json_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    for policy in ("resume", "fresh"):
        with pytest.raises(RunFolderError, match=r"run\.json does not describe a run.*; give another folder") as caught:
            RunFolder.open(tmp_path, IDENTITY, policy)
        assert "--fresh" not in str(caught.value)  # which does not help: whose the files are is not known
        assert "\n" not in str(caught.value)
    assert (tmp_path / "run.json").read_text() == content


def test_two_processes_cannot_hold_one_folder(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, IDENTITY):
        second = run_python(
            "import sys, pathlib; from gos_adapt.run_folder import RunFolder\n"
            "RunFolder.open(pathlib.Path(sys.argv[1]), {'model': 'abc', 'epsilon': 0.01})",
            tmp_path,
        )
    assert f"is in use by process {os.getpid()}" in second.stderr


def test_a_name_outside_the_folder_is_a_bug(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, IDENTITY) as run:
        for name in ("../x", "a/b", "run.json", "", ".."):
            with pytest.raises(ValueError, match="directly in the run folder"):
                run.save_bytes(name, b"")


def test_a_torn_last_line_is_dropped_and_the_journal_goes_on(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    with closing(Journal(path)) as journal:
        journal.put("a", 1)
        journal.put("b", 2)
    whole = path.read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:cut])
        with closing(Journal(path)) as journal:
            assert (journal.get("a"), "b" in journal) == (1, False)
            journal.put("c", 3)
        with closing(Journal(path)) as journal:
            assert (journal.get("a"), journal.get("c"), len(journal)) == (1, 3, 2)


def test_damage_in_the_middle_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    with closing(Journal(path)) as journal:
        for key in ("first", "second", "third"):
            journal.put(key, 1)
    path.write_bytes(path.read_bytes().replace(b"second", b"sekond"))
    with pytest.raises(RunFolderError, match=r"is damaged \(line 2: the checksum does not match\).*--fresh"):
        Journal(path)


def test_elapsed_time_adds_up_over_processes(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / JOURNAL)) as journal:
        time.sleep(0.05)
        journal.mark()
    with closing(Journal(tmp_path / JOURNAL)) as journal:
        time.sleep(0.05)
        assert journal.elapsed_s >= 0.1
        assert len(journal) == 0


def test_a_stage_has_no_more_time_for_being_killed(tmp_path: Path, clock: Clock) -> None:
    with closing(Journal(tmp_path / JOURNAL)) as journal:
        left = journal.clock("search", 100.0)
        clock.now += 30.0
        journal.mark()
        assert left() == 70.0
    clock.now += 1000.0  # nobody works
    with closing(Journal(tmp_path / JOURNAL)) as journal:
        assert journal.clock("search", 1000.0)() == 70.0
        assert journal.clock("recovery", 1000.0)() == 1000.0


def test_a_stage_without_a_limit_never_ends(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / JOURNAL)) as journal:
        assert journal.clock("search", math.inf)() > 1e8


WRITER = """
import sys
from pathlib import Path
from gos_adapt.run_folder import RunFolder
with RunFolder.open(Path(sys.argv[1]), {"model": "abc", "epsilon": 0.01}) as run:
    number = len(run.journal)
    while True:
        run.journal.put(str(number), "x" * (number % 3000))
        run.save_json("result.json", [number] * 200)
        print(number, flush=True)
        number += 1
"""


def test_kill_9_loses_no_acknowledged_record(tmp_path: Path) -> None:
    rng = random.Random(0)
    acknowledged = -1
    for _ in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            first = writer.stdout.readline()
            time.sleep(rng.uniform(0, 0.03))
            writer.send_signal(signal.SIGKILL)
            printed = (first + writer.stdout.read()).splitlines(keepends=True)
        acknowledged = max(int(line) for line in printed if line.endswith("\n"))
        with RunFolder.open(tmp_path, IDENTITY) as run:
            assert all(run.journal.get(str(i)) == "x" * (i % 3000) for i in range(acknowledged + 1))
            saved = run.load_json("result.json")
            assert saved == [saved[0]] * 200
            assert saved[0] >= acknowledged
    assert acknowledged >= 20


FULL = """
import resource, sys
from pathlib import Path
from gos_adapt.errors import RunFolderError
from gos_adapt.run_folder import RunFolder
with RunFolder.open(Path(sys.argv[1]), {"model": "abc", "epsilon": 0.01}) as run:
    run.save_bytes("model.so", b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    for attempt in (lambda: run.save_bytes("model.so", bytes(5000)), lambda: run.journal.put("big", "x" * 5000)):
        try:
            attempt()
        except RunFolderError as error:
            print(error)
    run.journal.put("small", 1)
"""


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    writer = run_python(FULL, tmp_path)
    assert writer.returncode == 0, writer.stderr
    first, second = writer.stdout.splitlines()
    assert first == (
        f"cannot write {tmp_path}/model.so: File too large; "
        "free some space and repeat the command; a run continues, unless --fresh is given"
    )
    assert JOURNAL in second
    assert not list(tmp_path.glob(".partial*"))
    with RunFolder.open(tmp_path, IDENTITY) as run:
        assert run.load_bytes("model.so") == b"old"
        assert run.journal.get("big") is None
        assert run.journal.get("small") == 1


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_with_no_space_left_says_so(tiny_disk: Path) -> None:
    with RunFolder.open(tiny_disk, IDENTITY) as run:
        run.journal.put("first", 1)
        with pytest.raises(RunFolderError, match=r"model\.so: No space left on device; free some space"):
            run.save_bytes("model.so", bytes(1_000_000))
        with pytest.raises(RunFolderError, match="No space left on device"):
            run.journal.put("big", "x" * 1_000_000)
        run.journal.put("second", 2)
    with RunFolder.open(tiny_disk, IDENTITY) as run:
        assert [run.journal.get(key) for key in ("first", "big", "second")] == [1, None, 2]
        assert run.load_bytes("model.so") is None


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunFolderError, match=r"cannot write .*--out"):
            RunFolder.open(path, IDENTITY)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match=r"Permission denied; give a writable folder with --out"):
        RunFolder.open(tmp_path / "run", IDENTITY)


def test_a_failed_replacement_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomic(path, b"old")
    with pytest.raises(RunFolderError, match=r"cannot write .*; make sure that files can be written in"):
        write_atomic(tmp_path / "missing" / "x", b"new")
    path.unlink()
    path.mkdir()
    with pytest.raises(RunFolderError, match="Is a directory"):
        write_atomic(path, b"new")
    assert os.listdir(tmp_path) == ["x"]
