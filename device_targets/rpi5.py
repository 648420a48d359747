"""Raspberry Pi 5."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from device_targets.aarch64 import aarch64

if TYPE_CHECKING:
    from device_targets.device import Device

_FEATURES = "fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"


def rpi5() -> Device:
    """Describe a Raspberry Pi 5."""
    arm = aarch64()
    return replace(
        arm,
        name="rpi5",
        description="Raspberry Pi 5: Cortex-A76, 4 cores, dot product",
        target={**arm.target, "mcpu": "cortex-a76"},
        features=frozenset(_FEATURES.split()),
        sources={
            **arm.sources,
            "target": "Raspberry Pi documentation, Processors, BCM2712",
            "threads": "Raspberry Pi documentation, Processors, BCM2712: quad-core",
            "memory_bytes": "raspberrypi.com, Raspberry Pi 5: 1 to 16 GB, of which the smallest",
            "features": "/proc/cpuinfo of a Raspberry Pi 5 Rev 1.0 (github.com/hrw/arm-socs-table, raspberry-pi5)",
        },
    )
