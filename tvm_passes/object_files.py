"""Compile each kernel into an object file of its own, once, on all cores.

Most of the time that a model takes to compile goes into its kernels, and the same ones come back: in the models that
settle which variant is best, in the model that is profiled, and in every other candidate of a search.
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from gos_adapt.errors import ConfigError
from tvm_passes.compat import IRModule, register_lowering, tvm

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future
    from pathlib import Path

    from tvm_passes.compat import PrimFunc, Target

LOWERING = "gos_adapt.subroutines"
register_lowering(LOWERING)


class ObjectFiles:
    """Object files of the kernels compiled so far, in a folder; a context manager, which leaves the folder.

    Args:
        folder: For the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self._threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)))  # TVM lets go of Python as it generates code
        self._compiled: dict[tuple[str, str], Future[Path]] = {}

    def __enter__(self) -> ObjectFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def begin(self, kernels: Mapping[str, PrimFunc], target: Target) -> list[Future[Path]]:
        """Begin to compile C functions by symbol (`tvm_passes.subroutines`), but for those that were before.

        A symbol must stand for the same code every time.
        """
        found = []
        for symbol, function in kernels.items():
            key = (symbol, str(target))
            if key not in self._compiled:
                path = self._folder / f"kernel_{next(self._numbers)}.o"
                self._compiled[key] = self._threads.submit(_compile, symbol, function, target, path)
            found.append(self._compiled[key])
        return found


def _compile(symbol: str, function: PrimFunc, target: Target, path: Path) -> Path:
    executable = tvm.compile(IRModule({symbol: function}), target, tir_pipeline=LOWERING)
    with open(os.memfd_create("kernel.o"), "rb") as memory:  # LLVM would end this process where a disk is full
        executable.mod.write_to_file(f"/proc/self/fd/{memory.fileno()}", "o")
        try:
            path.write_bytes(memory.read())
        except OSError as error:
            raise ConfigError(
                f"cannot write {path}: {error.strerror}; see that {path.parent} has room, then repeat the command"
            ) from error
    return path
