"""Link compiled code into a shared library for the machine it is meant for, and write into it what it needs there."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_targets.needs import SECTION
from device_targets.toolchain import compiler_for, run_compiler
from gos_adapt.errors import ConfigError, last_line
from tvm_passes.cpu_features import architecture_of, used_features

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tvm_passes.compat import Target


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
    linker = compiler_for(architecture_of(target))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        needs = Path(folder) / "needs.s"
        needs.write_text(_needs(used_features(target)))
        linked = Path(folder) / path.name

        def run(output: str, objects: Sequence[str]) -> None:
            run_compiler([*linker, "-shared", "-fPIC", "-o", output, *objects, str(needs), "-lm"])

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


def _needs(features: Iterable[str]) -> str:
    """Assembly of a section that names CPU features. It asks for no executable stack, as code without a word would."""
    return f'\t.section {SECTION}\n\t.asciz "{" ".join(sorted(features))}"\n\t.section .note.GNU-stack,"",%progbits\n'
