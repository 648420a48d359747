"""Raspberry Pi 3 Model B and B+, with a 64-bit system."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from device_targets.aarch64 import aarch64

if TYPE_CHECKING:
    from device_targets.device import Device


def rpi3() -> Device:
    """Describe a Raspberry Pi 3."""
    arm = aarch64()
    return replace(
        arm,
        name="rpi3",
        description="Raspberry Pi 3 Model B: Cortex-A53, 4 cores",
        target={**arm.target, "mcpu": "cortex-a53"},
        features=frozenset({"fp", "asimd", "crc32"}),
        sources={
            **arm.sources,
            "target": "Raspberry Pi documentation, Processors, BCM2837",
            "threads": "Raspberry Pi documentation, Processors, BCM2837: quad-core",
            "memory_bytes": "Raspberry Pi documentation, Flagship series: 1 GB",
            "features": "/proc/cpuinfo of a Model B Rev 1.2 (github.com/hrw/arm-socs-table, raspberry-pi3b): without "
            "the Cryptography Extension, an option of the core (Cortex-A53 TRM, DDI 0500, Implementation options)",
        },
    )
