"""See what each phase of the compiler makes of a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm_passes.compat import IRModule, PassContext, pass_instrument

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

PHASE = "phase "
"""Begins the names of the passes that are phases."""


@pass_instrument
class DumpPhases:
    """Write the module after each phase of `tvm_passes.pipeline` to a file, as text.

    Args:
        folder: Gets ``0-canonical.py``, ``1-fused.py`` ...; constants are left out.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run_after_pass(self, module: IRModule, info: Any) -> None:
        """Write what a phase left."""
        if info.name.startswith(PHASE):
            (self.folder / f"{info.name.removeprefix(PHASE)}.py").write_text(module.script())


def dump_phases(folder: Path) -> AbstractContextManager[Any]:
    """Within this context, what is compiled leaves its phases in `folder`."""
    context: AbstractContextManager[Any] = PassContext(instruments=[DumpPhases(folder)])
    return context
