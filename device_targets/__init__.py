"""Devices: data only, one per file; `session` talks to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from device_targets.aarch64 import aarch64
from device_targets.cuda import cuda
from device_targets.device import Device
from device_targets.host import host
from device_targets.jetson_nano import jetson_nano
from device_targets.jetson_nano_gpu import jetson_nano_gpu
from device_targets.laptop_avx2 import laptop_avx2
from device_targets.laptop_avx512 import laptop_avx512
from device_targets.pixel3 import pixel3
from device_targets.redmi_note_7s import redmi_note_7s
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
    "jetson-nano": jetson_nano,
    "jetson-nano-gpu": jetson_nano_gpu,
    "pixel3": pixel3,
    "redmi-note-7s": redmi_note_7s,
    "laptop-avx2": laptop_avx2,
    "laptop-avx512": laptop_avx512,
    "aarch64": aarch64,
    "cuda": cuda,
}
