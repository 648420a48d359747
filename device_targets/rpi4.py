"""Raspberry Pi 4 Model B, with a 64-bit system."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from device_targets.aarch64 import aarch64

if TYPE_CHECKING:
    from device_targets.device import Device


def rpi4() -> Device:
    """Describe a Raspberry Pi 4."""
    arm = aarch64()
    return replace(
        arm,
        name="rpi4",
        description="Raspberry Pi 4 Model B: Cortex-A72, 4 cores",
        target={**arm.target, "mcpu": "cortex-a72"},
        features=frozenset({"fp", "asimd", "crc32"}),
        sources={
            **arm.sources,
            "target": "Raspberry Pi documentation, Processors, BCM2711",
            "threads": "Raspberry Pi documentation, Processors, BCM2711: quad-core",
            "memory_bytes": "Raspberry Pi documentation, Flagship series: 1, 2, 4 or 8 GB, of which the smallest",
            "features": "/proc/cpuinfo of a Model B (github.com/hrw/arm-socs-table, raspberry-pi4): without the "
            "Cryptography Extension, an option of the core (Cortex-A72 TRM, 100095, Implementation options)",
        },
    )
