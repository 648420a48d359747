"""NVIDIA Jetson Nano: its processor."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from device_targets.aarch64 import aarch64
from device_targets.device import Cache

if TYPE_CHECKING:
    from device_targets.device import Device

_CPUINFO = "pytorch/cpuinfo, src/arm/cache.c, row of the Jetson TX1 (Cortex-A57 TRM, 6.1 and 7.1)"


def jetson_nano() -> Device:
    """Describe a Jetson Nano of 4 GB in its mode of 10 W, without its GPU."""
    arm = aarch64()
    return replace(
        arm,
        name="jetson-nano",
        description="NVIDIA Jetson Nano: Cortex-A57, 4 cores",
        target={**arm.target, "mcpu": "cortex-a57"},
        memory_bytes=4 * 2**30,
        features=frozenset({"fp", "asimd", "aes", "pmull", "sha1", "sha2", "crc32"}),
        clock_hz=1.479e9,
        macs_per_cycle=4,
        line_bytes=64,
        caches=(Cache(32 * 2**10, cores=1, ways=2), Cache(2 * 2**20, cores=4, ways=16)),
        bandwidth=25.6e9,
        copy_bandwidth=7.4e9,
        sources={
            **arm.sources,
            "target": "Linux, arch/arm64/boot/dts/nvidia/tegra210.dtsi: Cortex-A57",
            "threads": "Linux, arch/arm64/boot/dts/nvidia/tegra210.dtsi: four cores; two in the mode of 5 W",
            "memory_bytes": "deviceQuery on a board (gist.github.com/r7vme/45ad34e9c2e8d8cd1c01d94975ee6bee): 4 GB, "
            "shared with the GPU",
            "features": "/proc/cpuinfo of a board (gist.github.com/kitsook/87f473503b42f313862c843d0798c35d)",
            "clock_hz": "NVIDIA L4T 32.1, Power Management for Jetson Nano, Supported Modes: 1479 MHz; others say 1.43",
            "macs_per_cycle": "LLVM, AArch64SchedA57.td, from Arm's Cortex-A57 Software Optimization Guide, 3.15: a "
            "vector fmla of 4 takes both pipes for a cycle; not measured",
            "line_bytes": _CPUINFO,
            "caches": _CPUINFO,
            "bandwidth": "NVIDIA L4T 32.1, the same table: memory at 1600 MHz, and 64 bits by deviceQuery",
            "copy_bandwidth": "measured by tinymembench: memcpy copies 3.68e9 to 3.73e9 bytes/s, so moves twice as "
            "many (github.com/ThomasKaiser/sbc-bench, Results.md)",
        },
    )
