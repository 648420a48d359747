"""Link compiled code into a shared library for the machine it is meant for, and write into it what it needs there.

Code for this machine's architecture is linked by its C++ compiler ($CXX, g++, clang++ ...), code for another one by a
system's cross compiler or else by ziglang from PyPI. The system's comes first because it is faster: 0.02 s a library
against 0.05 s, and ziglang's first link takes 20 s, in which it prepares its C library (on two cores).
"""

from __future__ import annotations

import platform
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from device_targets import child_process
from device_targets.needs import SECTION
from gos_adapt.errors import ConfigError, last_line
from tvm_passes.compat import cc
from tvm_passes.cpu_features import architecture_of, used_features

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tvm_passes.compat import Target

_GLIBC = "2.28"
"""The oldest C library that TVM's wheels run with (manylinux_2_28): what they load need not ask for a newer one."""
_LINK_S = 300.0
"""Fifteen times what the slowest link took that was seen, the first of ziglang: what takes longer does not end."""


def link(executable: Any, target: Target, path: Path, objects: Sequence[Path] = ()) -> None:
    """Link what `tvm.compile` made for `target` into the library `path`, which appears when it is complete.

    Args:
        executable: With everything it imports.
        target: Whose linker to take.
        path: The library.
        objects: Object files that belong to it.

    Raises:
        ConfigError: there is no linker for the target's architecture, or it fails or does not end.
    """
    linker = _linker(architecture_of(target))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        needs = Path(folder) / "needs.s"
        needs.write_text(_needs(used_features(target)))
        linked = Path(folder) / path.name

        def run(output: str, objects: Sequence[str]) -> None:
            command = [*linker, "-shared", "-fPIC", "-o", output, *objects, str(needs), "-lm"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as linking:
                try:
                    said, _ = linking.communicate(timeout=_LINK_S)
                except subprocess.TimeoutExpired:
                    _stop(linking.pid)
                    raise RuntimeError(f"it did not end within {_LINK_S:.0f} s") from None
            if linking.returncode != 0:
                raise RuntimeError(said)

        try:
            executable.export_library(str(linked), fcompile=run, addons=[str(file) for file in objects])
        except OSError:
            raise
        except Exception as failure:  # whatever TVM or the linker says
            raise ConfigError(
                f"{' '.join(linker)} could not link the compiled model ({last_line(failure)}); see that it works and "
                f"that {path.parent} has room"
            ) from failure
        linked.replace(path)


def _linker(architecture: str) -> list[str]:
    """Return the command that links for an architecture."""
    if architecture == platform.machine():
        compiler = _words(cc.get_cc() or "")
        if compiler and shutil.which(compiler[0]):
            return compiler
        raise ConfigError("no C++ compiler links compiled models: install one (apt install g++), or name it in CXX")
    if system := shutil.which(f"{architecture}-linux-gnu-g++"):
        return [system]
    if find_spec("ziglang"):  # as a C compiler: nothing here is C++, and preparing its C++ library takes 45 s more
        return [*child_process.command("ziglang"), "cc", "-target", f"{architecture}-linux-gnu.{_GLIBC}"]
    raise ConfigError(
        f"nothing here links for {architecture}: pip install ziglang, or apt install g++-{architecture}-linux-gnu"
    )


def _words(compiler: str) -> list[str]:
    """Split what CXX holds: a command with arguments, or a path, which may have spaces; nothing if it is neither."""
    if shutil.which(compiler):
        return [compiler]
    try:
        return shlex.split(compiler)
    except ValueError:  # quotes that do not end
        return []


def _stop(linker: int) -> None:
    """Kill a linker and what it started; it has no group of its own, so that it ends with ours, too."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(linker)
        for one in (*process.children(recursive=True), process):
            with suppress(psutil.NoSuchProcess):
                one.kill()


def _needs(features: Iterable[str]) -> str:
    """Assembly of a section that names CPU features. It asks for no executable stack, as code without a word would."""
    return f'\t.section {SECTION}\n\t.asciz "{" ".join(sorted(features))}"\n\t.section .note.GNU-stack,"",%progbits\n'
