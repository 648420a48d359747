"""Run a module in a Python process of its own that imports nothing from the working directory.

``python -m`` looks there first. It is where the user's models lie, and whatever came with them: a ``numpy.py`` would be
executed, even by the process that exists because a model is not trusted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_PACKAGES = str(Path(__file__).parents[1])


def command(module: str) -> list[str]:
    """Return the command that runs `module`; its arguments go behind."""
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """Return the environment in which a child finds our packages where this process found them, installed or not."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([_PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])])}
