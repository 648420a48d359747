"""Build the agent that serves a board, and pack it with what it needs there: TVM's runtime, and no Python.

The runtime comes from TVM's wheels for the board's architecture, in the versions that are installed here: what is
compiled here calls it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import tarfile
import zipfile
from contextlib import suppress
from importlib.metadata import distribution, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from device_targets import child_process
from device_targets.toolchain import GLIBC, compiler_for, run_compiler
from gos_adapt.cache_folder import cache_folder
from gos_adapt.errors import ConfigError, last_line

if TYPE_CHECKING:
    from device_targets.device import Device

LIBRARIES = {
    "libtvm_runtime.so": ("apache-tvm", "tvm/lib"),
    "libtvm_runtime_extra.so": ("apache-tvm", "tvm/lib"),
    "libtvm_ffi.so": ("apache-tvm-ffi", "tvm_ffi/lib"),
}
"""Package and folder of each in a wheel; `_extra` has the random numbers that kernels are timed on."""
SOURCES = ("agent.c", "bytes.c", "session.c", "tracker.c")
_HERE = Path(__file__).parent
_DOWNLOAD_S = 600.0
_MAX_BYTES = 2**28
"""Of a library in a wheel: ten times the largest."""
_RUN = """#!/bin/sh
# Serve this board to TVM's RPC. Options: ./run.sh --help
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
export ADAPT_AGENT_KEY="${ADAPT_AGENT_KEY:-DEVICE}" LD_LIBRARY_PATH="$here/lib"
exec "$here/agent" --work "$here/work" "$@"
"""


def build_agent(architecture: str, libraries: Path, path: Path) -> None:
    """Compile the agent for an architecture.

    Args:
        architecture: As ``uname -m`` calls it.
        libraries: Folder of `LIBRARIES` for that architecture.
        path: The program, which finds them in the folder ``lib`` beside it, or where LD_LIBRARY_PATH says.

    Raises:
        ConfigError: no compiler compiles it.
    """
    compiler = compiler_for(architecture)
    sources = [str(_HERE / name) for name in SOURCES]
    linked = [str(libraries / name) for name in LIBRARIES if name != "libtvm_runtime_extra.so"]  # opened if it is there
    command = [*compiler, "-x", "c", "-std=c11", "-O2", "-Wall", "-Wextra", "-o", str(path), *sources]
    command += ["-x", "none", "-I", str(_headers()), "-Wl,-rpath,$ORIGIN/lib", "-Wl,--allow-shlib-undefined"]
    command += ["-Wl,--no-as-needed", *linked, "-ldl"]
    try:
        run_compiler(command)
    except RuntimeError as failure:
        raise ConfigError(f"{' '.join(compiler)} could not build the board's agent ({last_line(failure)})") from failure


def installed_agent() -> Path:
    """Return the agent for this machine, built when it is first asked for; it uses TVM's libraries where they are.

    Raises:
        ConfigError: no compiler compiles it, or there is no cache folder.
    """
    libraries = _installed()
    machine = (platform.machine(), *platform.libc_ver(), *map(str, libraries.values()))
    identity = hashlib.sha256(" ".join(machine).encode())
    for file in sorted([*_HERE.glob("*.*"), _headers() / "tvm" / "ffi" / "c_api.h"]):
        identity.update(file.read_bytes())
    folder = cache_folder() / "agents" / identity.hexdigest()[:16]
    if not (folder / "agent").exists():
        (folder / "lib").mkdir(parents=True, exist_ok=True)
        for name, library in libraries.items():
            with suppress(FileExistsError):
                (folder / "lib" / name).symlink_to(library)
        staged = folder / f"agent-{os.getpid()}"
        build_agent(platform.machine(), folder / "lib", staged)
        staged.replace(folder / "agent")
    return folder / "agent"


def pack_agent(device: Device, path: Path) -> None:
    """Write an archive (``.tar.gz``) that serves a board once it is unpacked there and ``run.sh`` is started.

    Raises:
        ConfigError: TVM's runtime for the board cannot be had, or no compiler compiles for it.
    """
    with TemporaryDirectory(prefix="adapt-board-") as scratch:
        folder = Path(scratch) / f"adapt-agent-{device.name}"
        (folder / "lib").mkdir(parents=True)
        runtime_for(device.architecture, folder / "lib")
        build_agent(device.architecture, folder / "lib", folder / "agent")
        (folder / "run.sh").write_text(_RUN.replace("DEVICE", device.name))
        (folder / "run.sh").chmod(0o755)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w:gz") as archive:
            archive.add(folder, folder.name)


def runtime_for(architecture: str, folder: Path) -> None:
    """Put TVM's runtime for an architecture into a folder: `LIBRARIES`.

    Raises:
        ConfigError: there is no wheel, or no way to the package index.
    """
    if architecture == platform.machine():
        for name, installed in _installed().items():
            (folder / name).write_bytes(installed.read_bytes())
        return
    with TemporaryDirectory(prefix="adapt-wheels-") as wheels:
        _download(architecture, Path(wheels))
        for wheel in Path(wheels).glob("*.whl"):
            _unpack(wheel, folder)
    if missing := [name for name in LIBRARIES if not (folder / name).is_file()]:
        raise ConfigError(f"TVM's wheels for {architecture} hold no {', '.join(missing)}")


def _installed() -> dict[str, Path]:
    return {name: _located(package, f"{folder}/{name}") for name, (package, folder) in LIBRARIES.items()}


def _headers() -> Path:
    return _located("apache-tvm-ffi", "tvm_ffi/include")


def _located(package: str, path: str) -> Path:
    """Where a file of an installed package is; the list of all that it installed takes a tenth of a second to read."""
    return Path(str(distribution(package).locate_file(path)))


def _download(architecture: str, folder: Path) -> None:
    wanted = sorted({f"{package}=={version(package)}" for package, _ in LIBRARIES.values()})
    tag = f"manylinux_{GLIBC.replace('.', '_')}_{architecture}"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = [*child_process.command("pip"), "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--platform", tag, "--python-version", python, "--dest", str(folder), *wanted]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_DOWNLOAD_S)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"TVM's runtime for {architecture} did not come within {_DOWNLOAD_S:.0f} s") from None
    except subprocess.CalledProcessError as failure:
        raise ConfigError(
            f"TVM's runtime for {architecture} cannot be had ({last_line(Exception(failure.stderr))}); "
            f"see that 'pip download {wanted[0]} --platform {tag} --only-binary=:all: --no-deps' works"
        ) from failure


def _unpack(wheel: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                name = Path(member.filename).name
                if name in LIBRARIES and member.file_size <= _MAX_BYTES:
                    (folder / name).write_bytes(archive.read(member))
    except zipfile.BadZipFile as failure:
        raise ConfigError(f"the wheel {wheel.name} is damaged ({failure}); try again") from failure
