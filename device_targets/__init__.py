"""Devices: data only, one per file; `session` talks to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from device_targets.device import Device
from device_targets.host import host

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DEVICES", "Device", "host"]

DEVICES: dict[str, Callable[[], Device]] = {
    "host": host,
}
