"""Raspberry Pi 4 Model B, with a 64-bit system."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from device_targets.aarch64 import aarch64
from device_targets.device import Cache

if TYPE_CHECKING:
    from device_targets.device import Device

_TREE = "Linux, arch/arm/boot/dts/broadcom/bcm2711.dtsi, node cpus"


def rpi4() -> Device:
    """Describe a Raspberry Pi 4."""
    arm = aarch64()
    return replace(
        arm,
        name="rpi4",
        description="Raspberry Pi 4 Model B: Cortex-A72, 4 cores",
        target={**arm.target, "mcpu": "cortex-a72"},
        features=frozenset({"fp", "asimd", "crc32"}),
        clock_hz=1.5e9,
        macs_per_cycle=4,
        line_bytes=64,
        caches=(Cache(32 * 2**10, cores=1, ways=2), Cache(2**20, cores=4, ways=16)),
        copy_bandwidth=5.5e9,
        power_w=(3.1, 6.1),
        sources={
            **arm.sources,
            "target": "Raspberry Pi documentation, Processors, BCM2711",
            "threads": "Raspberry Pi documentation, Processors, BCM2711: quad-core",
            "memory_bytes": "Raspberry Pi documentation, Flagship series: 1, 2, 4 or 8 GB, of which the smallest",
            "features": "/proc/cpuinfo of a Model B (github.com/hrw/arm-socs-table, raspberry-pi4): without the "
            "Cryptography Extension, an option of the core (Cortex-A72 TRM, 100095, Implementation options)",
            "clock_hz": "Raspberry Pi documentation, Processors, BCM2711: 1.5 GHz (later boards and firmware: 1.8)",
            "macs_per_cycle": "measured: 11.958 GFLOPS of a core, 7.97 a cycle at 1.5 GHz (github.com/pigirons/cpufp, "
            "benchmark_result/arm64/Broadcom_BCM2711.md)",
            "line_bytes": _TREE,
            "caches": _TREE,
            "copy_bandwidth": "measured by STREAM, copy, one thread: 5.53e9 bytes/s (sci-pi.org.uk, bench/stream); "
            "tinymembench has memcpy at 2.24e9 to 2.78e9, which moves twice as many "
            "(github.com/ThomasKaiser/sbc-bench)",
            "power_w": "Raspberry Pi documentation, Power supplies: 0.6 A idle, 1.2 A on average under stress, with "
            "monitor and keyboard, at 5.1 V",
        },
    )
