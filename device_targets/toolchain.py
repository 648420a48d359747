"""What compiles C and links libraries for an architecture.

For this machine's own, its C compiler ($CC, gcc, clang or cc); for another one a system's cross compiler, or else
ziglang from PyPI. The system's comes first because it is faster: 0.02 s a library against 0.05 s, and ziglang's first
link takes 20 s, in which it prepares its C library (on two cores).
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from contextlib import suppress
from importlib.util import find_spec

import psutil

from device_targets import child_process
from gos_adapt.errors import ConfigError

GLIBC = "2.28"
"""The oldest C library that TVM's wheels run with (manylinux_2_28): what they load need not ask for a newer one."""
_NATIVE = ("gcc", "clang", "cc")
_LIMIT_S = 300.0
"""Fifteen times what the slowest link took that was seen, the first of ziglang: what takes longer does not end."""


def compiler_for(architecture: str) -> list[str]:
    """Return the command that compiles and links for an architecture, named as ``uname -m`` does.

    Raises:
        ConfigError: there is none.
    """
    if architecture == platform.machine():
        if named := os.environ.get("CC"):
            compiler = _words(named)
        else:
            compiler = [name for name in _NATIVE if shutil.which(name)][:1]
        if compiler and shutil.which(compiler[0]):
            return compiler
        raise ConfigError("no C compiler links compiled models: install one (apt install gcc), or name it in CC")
    if system := shutil.which(f"{architecture}-linux-gnu-gcc"):
        return [system]
    if find_spec("ziglang"):
        return [*child_process.command("ziglang"), "cc", "-target", f"{architecture}-linux-gnu.{GLIBC}"]
    raise ConfigError(
        f"nothing here links for {architecture}: pip install ziglang, or apt install gcc-{architecture}-linux-gnu"
    )


def run_compiler(command: list[str]) -> None:
    """Run a compiler.

    Raises:
        RuntimeError: it fails, with what it said, or does not end.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as compiling:
        try:
            said, _ = compiling.communicate(timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            _stop(compiling.pid)
            raise RuntimeError(f"it did not end within {_LIMIT_S:.0f} s") from None
    if compiling.returncode != 0:
        raise RuntimeError(said)


def _words(compiler: str) -> list[str]:
    """Split what CC holds: a command with arguments, or a path, which may have spaces; nothing if it is neither."""
    if shutil.which(compiler):
        return [compiler]
    try:
        return shlex.split(compiler)
    except ValueError:  # quotes that do not end
        return []


def _stop(compiler: int) -> None:
    """Kill a compiler and what it started; it has no group of its own, so that it ends with ours, too."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(compiler)
        for one in (*process.children(recursive=True), process):
            with suppress(psutil.NoSuchProcess):
                one.kill()
