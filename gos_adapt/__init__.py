"""Make trained neural networks fast on your own hardware: measured, searched, compiled.

    config = gos_adapt.AdaptConfig("model.onnx", target="host", task="task.toml")
    result = gos_adapt.adapt(config)
    model = gos_adapt.load_compiled(config.folder)

Importing this package imports nothing heavy: each public name is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gos_adapt.config import AdaptConfig
    from gos_adapt.errors import (
        AdaptError,
        ConfigError,
        DeviceError,
        DeviceUnreachableError,
        ModelImportError,
        RunFolderError,
        UnsupportedOperatorError,
        VerificationError,
    )
    from gos_adapt.pipeline import adapt
    from gos_adapt.task import Task, load_task
    from tvm_passes.compiled import load_compiled

__version__ = "0.1.0"

__all__ = [
    "AdaptConfig",
    "AdaptError",
    "ConfigError",
    "DeviceError",
    "DeviceUnreachableError",
    "ModelImportError",
    "RunFolderError",
    "Task",
    "UnsupportedOperatorError",
    "VerificationError",
    "adapt",
    "load_compiled",
    "load_task",
]

_HOME = {
    "AdaptConfig": "gos_adapt.config",
    "Task": "gos_adapt.task",
    "load_task": "gos_adapt.task",
    "adapt": "gos_adapt.pipeline",
    "load_compiled": "tvm_passes.compiled",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME.get(name, "gos_adapt.errors")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
