"""Devices: data only, one per file; `session` talks to them."""

from __future__ import annotations

from collections.abc import Callable

from device_targets.device import Device
from device_targets.host import host

__all__ = ["DEVICES", "Device", "host"]

DEVICES: dict[str, Callable[[], Device]] = {
    "host": host,
}
