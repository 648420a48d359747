"""Run a module in a Python process of its own that imports nothing from the working directory.

``python -m`` looks there first. It is where the user's models lie, and whatever came with them: a ``numpy.py`` would be
executed, even by the process that exists because a model is not trusted.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PACKAGES = str(Path(__file__).parents[1])


def command(module: str) -> list[str]:
    """Return the command that runs `module`; its arguments go behind."""
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """Return the environment in which a child finds our packages where this process found them, installed or not."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([_PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])])}


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def without_torch() -> None:
    """Keep TVM from importing torch into a process that has no use for it, which is most of what its start takes.

    TVM's foreign-function layer imports torch wherever it can, and does without it where it cannot.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # makes `import torch` an ImportError
