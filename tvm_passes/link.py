"""Link compiled code into a shared library for the machine it is meant for, and write into it what it needs there.

Code for this machine's architecture is linked by its C++ compiler ($CXX, g++, clang++ ...), code for another one by a
system's cross compiler or else by ziglang from PyPI. The system's comes first because it is faster: 0.02 s a library
against 0.05 s, and ziglang's first link takes 20 s, in which it prepares its C library (on two cores).
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_targets.needs import SECTION
from gos_adapt.errors import ConfigError, last_line
from tvm_passes.compat import cc
from tvm_passes.cpu_features import architecture_of, used_features

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tvm_passes.compat import Target

_GLIBC = "2.28"
"""The oldest C library that TVM's wheels run with (manylinux_2_28): what they load need not ask for a newer one."""


def link(executable: Any, target: Target, path: Path, objects: Sequence[Path] = ()) -> None:
    """Link what `tvm.compile` made for `target` into the library `path`, which appears when it is complete.

    Args:
        executable: With everything it imports.
        target: Whose linker to take.
        path: The library.
        objects: Object files that belong to it.

    Raises:
        ConfigError: there is no linker for the target's architecture, or it fails.
    """
    linker = _linker(architecture_of(target))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        needs = Path(folder) / "needs.s"
        needs.write_text(_needs(used_features(target)))
        linked = Path(folder) / path.name

        def run(output: str, objects: Sequence[str]) -> None:
            command = [*linker, "-shared", "-fPIC", "-o", output, *objects, str(needs), "-lm"]
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if result.returncode != 0:
                raise RuntimeError(result.stdout)

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
        compiler = cc.get_cc()
        if compiler and shutil.which(compiler):
            return [compiler]
        raise ConfigError("no C++ compiler links compiled models: install one (apt install g++), or name it in CXX")
    if system := shutil.which(f"{architecture}-linux-gnu-g++"):
        return [system]
    if find_spec("ziglang"):  # as a C compiler: nothing here is C++, and preparing its C++ library takes 45 s more
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-gnu.{_GLIBC}"]
    raise ConfigError(
        f"nothing here links for {architecture}: pip install ziglang, or apt install g++-{architecture}-linux-gnu"
    )


def _needs(features: Iterable[str]) -> str:
    """Assembly of a section that names CPU features. It asks for no executable stack, as code without a word would."""
    return f'\t.section {SECTION}\n\t.asciz "{" ".join(sorted(features))}"\n\t.section .note.GNU-stack,"",%progbits\n'
