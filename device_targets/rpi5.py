"""Raspberry Pi 5."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from device_targets.aarch64 import aarch64
from device_targets.device import Cache

if TYPE_CHECKING:
    from device_targets.device import Device

_FEATURES = "fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
_TREE = "Linux, arch/arm64/boot/dts/broadcom/bcm2712.dtsi, node cpus"


def rpi5() -> Device:
    """Describe a Raspberry Pi 5."""
    arm = aarch64()
    return replace(
        arm,
        name="rpi5",
        description="Raspberry Pi 5: Cortex-A76, 4 cores, dot product",
        target={**arm.target, "mcpu": "cortex-a76"},
        features=frozenset(_FEATURES.split()),
        clock_hz=2.4e9,
        macs_per_cycle=8,
        line_bytes=64,
        caches=(
            Cache(64 * 2**10, cores=1, ways=4),
            Cache(512 * 2**10, cores=1, ways=8),
            Cache(2 * 2**20, cores=4, ways=16),
        ),
        bandwidth=17e9,
        copy_bandwidth=10.5e9,
        sources={
            **arm.sources,
            "target": "Raspberry Pi documentation, Processors, BCM2712",
            "threads": "Raspberry Pi documentation, Processors, BCM2712: quad-core",
            "memory_bytes": "raspberrypi.com, Raspberry Pi 5: 1 to 16 GB, of which the smallest",
            "features": "/proc/cpuinfo of a Raspberry Pi 5 Rev 1.0 (github.com/hrw/arm-socs-table, raspberry-pi5)",
            "clock_hz": "Raspberry Pi documentation, Processors, BCM2712: 2.4 GHz",
            "macs_per_cycle": "measured: 38.369 GFLOPS of a core, 15.99 a cycle at 2.4 GHz (github.com/pigirons/cpufp, "
            "benchmark_result/arm64/Broadcom_BCM2712.md)",
            "line_bytes": _TREE,
            "caches": _TREE,
            "bandwidth": "Raspberry Pi documentation, Processors, BCM2712: up to 17 GB/s, 32 bits of LPDDR4X",
            "copy_bandwidth": "measured by sbc-bench's tinymembench: memcpy copies 5.26e9 bytes/s, so moves twice as "
            "many (gist.github.com/arkadijs/117934b6a3f011dc7024193bcb0b82a8)",
        },
    )
