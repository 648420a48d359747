"""Raspberry Pi 3 Model B and B+, with a 64-bit system."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from device_targets.aarch64 import aarch64
from device_targets.device import Cache

if TYPE_CHECKING:
    from device_targets.device import Device

_TREE = "Linux, arch/arm/boot/dts/broadcom/bcm2837.dtsi, node cpus"


def rpi3() -> Device:
    """Describe a Raspberry Pi 3."""
    arm = aarch64()
    return replace(
        arm,
        name="rpi3",
        description="Raspberry Pi 3 Model B: Cortex-A53, 4 cores",
        target={**arm.target, "mcpu": "cortex-a53"},
        features=frozenset({"fp", "asimd", "crc32"}),
        clock_hz=1.2e9,
        macs_per_cycle=4,
        line_bytes=64,
        caches=(Cache(32 * 2**10, cores=1, ways=4), Cache(512 * 2**10, cores=4, ways=16)),
        copy_bandwidth=2.1e9,
        power_w=(1.5, 4.3),
        sources={
            **arm.sources,
            "target": "Raspberry Pi documentation, Processors, BCM2837",
            "threads": "Raspberry Pi documentation, Processors, BCM2837: quad-core",
            "memory_bytes": "Raspberry Pi documentation, Flagship series: 1 GB",
            "features": "/proc/cpuinfo of a Model B Rev 1.2 (github.com/hrw/arm-socs-table, raspberry-pi3b): without "
            "the Cryptography Extension, an option of the core (Cortex-A53 TRM, DDI 0500, Implementation options)",
            "clock_hz": "Raspberry Pi documentation, Processors, BCM2837: 1.2 GHz (Model B+: 1.4)",
            "macs_per_cycle": "measured on a Raspberry Pi 3: a vector fmla of 4 begins in each cycle "
            "(github.com/ocxtal/insn_bench_aarch64, results/raspberry-pi-3_cortex-a53.md)",
            "line_bytes": _TREE,
            "caches": _TREE,
            "copy_bandwidth": "measured on a Model B+ by tinymembench: memcpy copies 1.04e9 to 1.23e9 bytes/s, so "
            "moves twice as many (github.com/ThomasKaiser/sbc-bench, Results.md)",
            "power_w": "Raspberry Pi documentation, Power supplies: 0.30 A idle, 0.85 A on average under stress, with "
            "monitor and keyboard, at 5.1 V",
        },
    )
