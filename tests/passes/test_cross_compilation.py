from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import psutil
import pytest
import tvm_ffi
from compiling import graph, random
from onnx import helper

from device_targets import DEVICES, Device, host, toolchain
from device_targets.needs import check_needs, read_needs
from device_targets.session import Session
from device_targets.threads import tied
from gos_adapt import cli
from gos_adapt.errors import ConfigError, DeviceError, DeviceUnreachableError
from tvm_passes.build import build_model, target_of
from tvm_passes.compat import Target, tvm
from tvm_passes.compiled import load_compiled
from tvm_passes.cpu_features import used_features

REMOTE = [name for name, describe in DEVICES.items() if not describe().local]
BOARDS = [name for name in REMOTE if (DEVICES[name]().kind, DEVICES[name]().architecture) == ("cpu", "aarch64")]
GPUS = [name for name in REMOTE if DEVICES[name]().kind != "cpu"]
SHARED_OBJECT, AARCH64 = 3, 183  # e_type, e_machine
MODEL = graph(
    [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["c"], ["y"]),
    ],
    (1, 8, 6, 6),
    {"w": random(8, 8, 3, 3)},
    {"y": 4},
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(MODEL, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(MODEL, host(), 1, tmp_path_factory.mktemp("native") / "model.so").path


def richer_than_this_machine() -> Device:
    """This machine with the CPU that has most of what its own lacks."""
    device = host()

    def lacking(mcpu: str) -> int:
        return len(used_features(Target({**device.target, "mcpu": mcpu})) - device.features)

    known = tvm.get_global_func("target.llvm_get_cpu_archlist")(target_of(device))
    target = {**device.target, "mcpu": max(map(str, known), key=lacking)}
    return replace(device, target=target, features=used_features(Target(target)))


@pytest.fixture(scope="module")
def richer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    device = richer_than_this_machine()
    assert device.features - host().features
    return build_model(MODEL, device, 1, tmp_path_factory.mktemp("richer") / "model.so").path


@pytest.mark.parametrize("board", BOARDS)
def test_a_library_for_a_board_is_code_for_it_and_names_the_features_it_uses(board: str, tmp_path: Path) -> None:
    device = DEVICES[board]()
    library = build_model(MODEL, device, 1, tmp_path / "model.so").path
    assert struct.unpack_from("<HH", library.read_bytes(), 16) == (SHARED_OBJECT, AARCH64)
    needs = read_needs(library)
    assert (needs.architecture, needs.features) == ("aarch64", used_features(target_of(device)))
    check_needs(library, device)


def test_code_for_a_newer_board_is_refused_by_an_older_one_by_the_name_of_the_feature(tmp_path: Path) -> None:
    library = build_model(MODEL, DEVICES["rpi5"](), 1, tmp_path / "model.so").path
    with pytest.raises(DeviceError, match=r"device rpi4 refused model\.so: its code may use .*asimddp.*--target rpi4"):
        check_needs(library, DEVICES["rpi4"]())


def test_code_for_any_arm_machine_runs_on_every_board(tmp_path: Path) -> None:
    library = build_model(MODEL, DEVICES["aarch64"](), 1, tmp_path / "model.so").path
    for board in BOARDS:
        check_needs(library, DEVICES[board]())


def test_code_for_this_machine_fits_this_machine(native: Path) -> None:
    assert read_needs(native).features
    check_needs(native, host())


def describe_beside(library: Path, threads: int = 1) -> None:
    """Put a ``model.json`` beside a library: what `adapt compile` writes."""
    form = {"name": "m", "target": "x", "threads": threads, "batch": 1, "inputs": [], "outputs": []}
    library.with_name("model.json").write_text(json.dumps(form))


def test_a_model_gets_no_more_threads_than_this_process_has_cores(
    native: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe_beside(native, threads=64)
    for name in ("TVM_NUM_THREADS", "TVM_BIND_THREADS"):
        monkeypatch.setenv(name, "")  # so that what is set now is undone
        monkeypatch.delenv(name)
    with tied(sorted(os.sched_getaffinity(0))[:1]):
        load_compiled(native)
    assert os.environ["TVM_NUM_THREADS"] == "1"


def test_code_for_a_cpu_with_more_features_is_refused_before_it_is_loaded(
    richer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe_beside(richer)
    monkeypatch.setattr(tvm.runtime, "load_module", lambda _: pytest.fail("it was loaded"))
    lacking = (read_needs(richer).features or frozenset()) - host().features
    with pytest.raises(DeviceError, match=min(lacking)):
        load_compiled(richer)


def test_code_for_another_architecture_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = replace(host(), target={**host().target, "mtriple": "riscv64-linux-gnu"})
    describe_beside(build_model(MODEL, DEVICES["rpi3"](), 1, tmp_path / "model.so").path)
    monkeypatch.setattr(tvm.runtime, "load_module", lambda _: pytest.fail("it was loaded"))
    monkeypatch.setattr("tvm_passes.compiled.host", lambda: foreign)
    with pytest.raises(DeviceError, match="it is code for aarch64, and the device is riscv64"):
        load_compiled(tmp_path)


def test_a_session_refuses_such_code_before_it_sends_it_anywhere(richer: Path) -> None:
    with pytest.raises(DeviceError, match="which the CPU lacks; compile the model with --target host"):
        Session(host()).load(richer)  # not open: whatever comes after the check would say so
    with pytest.raises(DeviceError, match="is closed"):
        Session(richer_than_this_machine()).load(richer)


def test_a_library_that_does_not_say_what_it_needs_is_refused() -> None:
    with pytest.raises(DeviceError, match="it does not say which CPU features its code may use"):
        check_needs(Path(tvm_ffi.libinfo.find_libtvm_ffi()), host())


def refusal(content: bytes, folder: Path) -> str:
    """What this machine has against a library of this content; nothing when it would load it."""
    (folder / "damaged.so").write_bytes(content)
    try:
        check_needs(folder / "damaged.so", host())
    except DeviceError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.95])
def test_a_library_that_breaks_off_is_refused_in_one_line(part: float, native: Path, tmp_path: Path) -> None:
    content = native.read_bytes()
    message = refusal(content[: int(part * len(content))], tmp_path)
    assert message.startswith("device host refused damaged.so: ")
    assert "\n" not in message


def test_no_damage_to_its_header_passes_for_a_crash(native: Path, tmp_path: Path) -> None:
    content = native.read_bytes()
    assert refusal(content, tmp_path) == ""
    for place in range(64):
        for value in (0, 1, 0x7F, 0xFF):
            message = refusal(content[:place] + bytes([value]) + content[place + 1 :], tmp_path)
            assert message == "" or message.startswith("device host refused damaged.so: ")


def test_without_a_linker_for_the_board_the_message_names_two_ways_to_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain.shutil, "which", lambda _: None)
    monkeypatch.setattr(toolchain, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install ziglang, or apt install gcc-aarch64-linux-gnu"):
        build_model(MODEL, DEVICES["rpi3"](), 1, tmp_path / "model.so")
    with pytest.raises(ConfigError, match=r"apt install gcc\), or name it in CC"):
        build_model(MODEL, host(), 1, tmp_path / "model.so")


def cross_compiler(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a cross compiler of the system first in the path."""
    compiler = folder / "aarch64-linux-gnu-gcc"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_systems_cross_compiler_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = tmp_path / "used"
    zig = f"exec {sys.executable} -m ziglang cc -target aarch64-linux-gnu.2.28"
    cross_compiler(tmp_path, f'touch {used}; {zig} "$@"', monkeypatch)
    library = build_model(MODEL, DEVICES["rpi3"](), 1, tmp_path / "model.so").path
    assert used.exists()
    assert read_needs(library).architecture == "aarch64"


def test_a_linker_that_fails_is_quoted_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cross_compiler(tmp_path, "echo first; echo 'ld: no space left' >&2; exit 1", monkeypatch)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ConfigError, match=r"gcc could not link the compiled model \(ld: no space left\)"):
        build_model(MODEL, DEVICES["rpi3"](), 1, out / "model.so")
    assert list(out.iterdir()) == []


def test_a_linker_that_does_not_end_is_stopped_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cross_compiler(tmp_path, f"sleep 1000 &\necho $! > {tmp_path / 'pid'}\nwait", monkeypatch)
    monkeypatch.setattr(toolchain, "_LIMIT_S", 3.0)
    with pytest.raises(ConfigError, match=r"\(it did not end within 3 s\); see that it works"):
        build_model(MODEL, DEVICES["rpi3"](), 1, tmp_path / "model.so")
    started = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(started) or psutil.Process(started).status() == psutil.STATUS_ZOMBIE


def test_the_compiler_in_cc_may_have_arguments_and_stand_in_a_path_with_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = shutil.which("cc")
    (tmp_path / "my compiler").symlink_to(compiler)
    for number, name in enumerate([f"env LANG=C {compiler}", str(tmp_path / "my compiler")]):
        monkeypatch.setenv("CC", name)
        assert build_model(MODEL, host(), 1, tmp_path / f"{number}.so").path.is_file()
    monkeypatch.setenv("CC", "gcc '")
    with pytest.raises(ConfigError, match="no C compiler links compiled models"):
        build_model(MODEL, host(), 1, tmp_path / "model.so")


def test_adapt_compile_makes_a_library_for_a_board(model: Path, tmp_path: Path) -> None:
    assert cli.main(["compile", str(model), "--target", "rpi3", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    check_needs(tmp_path / "out" / "model.so", DEVICES["rpi3"]())
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (described["target"], described["threads"]) == ("rpi3", 4)


@pytest.mark.parametrize("command", [["profile"], ["bench"], []], ids=["profile", "bench", "adapt"])
def test_what_must_run_on_a_board_says_in_one_line_what_works_and_writes_nothing(
    command: list[str], model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    assert cli.main([*command, str(model), "--target", "rpi3", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: nothing says where rpi3 is: name its address with --address HOST:PORT")
    assert "'adapt compile MODEL --target rpi3 --out DIR'" in error
    assert error.count("\n") == 1
    assert sorted(model.parent.iterdir()) == [model]


@pytest.mark.parametrize("board", REMOTE)
def test_a_session_never_measures_this_machine_in_place_of_a_board(board: str) -> None:
    with pytest.raises(DeviceUnreachableError, match=board), Session(DEVICES[board]()):
        pytest.fail("it opened")


def test_devices_says_what_can_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices"]) == 0
    rows = {row.split()[0]: row for row in capsys.readouterr().out.splitlines() if row.split()[0] in DEVICES}
    assert rows.keys() == DEVICES.keys()
    assert "here" in rows["host"]
    assert all("--address" in rows[board] for board in BOARDS)
    assert all("not yet" in rows[gpu] for gpu in GPUS)
    assert "38 GFLOP/s" in rows["rpi3"]


@pytest.mark.parametrize("gpu", GPUS)
def test_a_gpu_is_no_target_yet(gpu: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compile", str(model), "--target", gpu, "--out", str(model.parent / "out")]) == 2
    assert f"code for {gpu} cannot be generated yet" in capsys.readouterr().err
