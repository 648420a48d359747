"""The compiler: Relax passes, kernel schedules, and the pass that puts an adaptation into someone else's module."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gos_adapt.adaptation import Adaptation, load_adaptation
    from tvm_passes.lower_for_device import LowerForDevice
    from tvm_passes.replace_operators import ReplaceOperators

__all__ = ["Adaptation", "LowerForDevice", "ReplaceOperators", "load_adaptation"]

_HOMES = {
    "Adaptation": "gos_adapt.adaptation",
    "LowerForDevice": "tvm_passes.lower_for_device",
    "ReplaceOperators": "tvm_passes.replace_operators",
    "load_adaptation": "gos_adapt.adaptation",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: TVM takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
