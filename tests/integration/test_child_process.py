from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from compiling import graph, random
from hostile_models import small_model
from onnx import helper
from processes import gone

from device_targets import host, toolchain
from device_targets.session import Session
from gos_adapt.model.load_apart import load_apart
from tvm_passes.build import prepare_functions
from tvm_passes.build_pool import BuildPool, Trial

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.rpc

MODEL = graph([helper.make_node("Conv", ["x", "w"], ["y"])], (1, 8, 4, 4), {"w": random(8, 8, 1, 1)}, {"y": 4})
TRAPS = ("device_targets", "gos_adapt", "json", "numpy", "onnx", "queue", "socket", "subprocess", "tvm", "ziglang")


def trial() -> Trial:
    ((key, (func, constants)),) = prepare_functions({"one": MODEL}, host(), 1).kernels.items()
    return Trial(key, func, constants, None)


def serves(_folder: Path, _patch: pytest.MonkeyPatch) -> None:
    with Session(host()) as session:
        assert session.alive()


def builds(folder: Path, _patch: pytest.MonkeyPatch) -> None:
    with BuildPool(host(), folder) as pool:
        (library,) = pool.build({"one": trial()})
    assert (set(library.parameters), library.refused) == ({"one"}, {})


def reads(folder: Path, _patch: pytest.MonkeyPatch) -> None:
    (folder / "model.onnx").write_bytes(small_model().SerializeToString())
    original, _ = load_apart(folder / "model.onnx")
    assert original == small_model()


def links(_folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(toolchain.shutil, "which", lambda _: None)  # no cross compiler of the system
    command = [*toolchain.compiler_for("aarch64"), "--version"]
    assert "clang" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of modules that say when they are imported."""
    for name in TRAPS:
        (tmp_path / f"{name}.py").write_text("open(__file__ + '.imported', 'w').close()\nraise SystemExit(1)\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("child", [serves, builds, reads, links])
def test_a_child_imports_nothing_from_the_working_directory(
    child: Callable[[Path, pytest.MonkeyPatch], None], trapped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child(trapped, monkeypatch)
    assert not list(trapped.glob("*.imported"))


def test_the_traps_catch_a_process_that_does(trapped: Path) -> None:
    assert subprocess.run([sys.executable, "-m", "json.tool"], check=False).returncode == 1
    assert [path.name for path in trapped.glob("*.imported")] == ["json.py.imported"]


def test_a_builder_that_is_stopped_takes_its_linker_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linker = tmp_path / "linker"
    linker.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! > {tmp_path / 'pid'}\nwait\n")
    linker.chmod(0o755)
    monkeypatch.setenv("CC", str(linker))
    with BuildPool(host(), tmp_path) as pool:
        (library,) = pool.build({"one": trial()})
    assert library.refused == {"one": "building it killed the compiler, or did not end"}
    assert gone(int((tmp_path / "pid").read_text()))
