"""Devices: data only, one per file; `session` talks to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from device_targets.aarch64 import aarch64
from device_targets.device import Device
from device_targets.host import host
from device_targets.rpi3 import rpi3
from device_targets.rpi4 import rpi4
from device_targets.rpi5 import rpi5

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DEVICES", "Device", "host"]

DEVICES: dict[str, Callable[[], Device]] = {
    "host": host,
    "rpi3": rpi3,
    "rpi4": rpi4,
    "rpi5": rpi5,
    "aarch64": aarch64,
}
