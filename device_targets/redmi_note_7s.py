"""Xiaomi Redmi Note 7S: Snapdragon 660."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from device_targets.aarch64 import aarch64
from device_targets.device import Cache

if TYPE_CHECKING:
    from device_targets.device import Device

_CPUINFO = "pytorch/cpuinfo, src/arm/cache.c, row of Snapdragon 660: a guess of that library"


def redmi_note_7s() -> Device:
    """Describe a Redmi Note 7S by its four fast cores, Kryo 260 Gold."""
    arm = aarch64()
    return replace(
        arm,
        name="redmi-note-7s",
        description="Xiaomi Redmi Note 7S: Snapdragon 660, 4 of Cortex-A73 (and 4 of A53)",
        target={**arm.target, "mcpu": "cortex-a73"},
        memory_bytes=3 * 2**30,
        features=frozenset({"fp", "asimd", "aes", "pmull", "sha1", "sha2", "crc32"}),
        clock_hz=2.2e9,
        macs_per_cycle=4,
        line_bytes=64,
        caches=(Cache(64 * 2**10, cores=1, ways=16), Cache(2**20, cores=4, ways=16)),
        bandwidth=29.9e9,
        sources={
            **arm.sources,
            "target": "Linux, arch/arm64/boot/dts/qcom/sdm630.dtsi and sdm660.dtsi: two clusters of four; that Kryo "
            "260 Gold is a Cortex-A73: pytorch/cpuinfo. LLVM's kryo is the core of the Snapdragon 820",
            "threads": "a choice: the cluster of fast cores; a kernel shared with slow ones waits for them",
            "memory_bytes": "READMEs of device trees for the Note 7 family (lavender): 3, 4 or 6 GB, of which the "
            "smallest",
            "features": "/proc/cpuinfo of other phones with the same processor (0x51, 0x800)",
            "clock_hz": "README of github.com/ResurrectionRemix-Devices/device_xiaomi_lavender, which is for the 7 and "
            "the 7S: 2.2 GHz; others say 1.8, the clock of the slow cores",
            "macs_per_cycle": "an assumption, not measured: LLVM schedules the A73 as the A57, whose two pipes begin a "
            "vector fmla of 4 in each cycle (AArch64SchedA57.td)",
            "line_bytes": _CPUINFO,
            "caches": _CPUINFO,
            "bandwidth": "tuttoandroid.net, Snapdragon 660 vs. 653: two channels of LPDDR4 at 1866 MHz; not confirmed "
            "by the vendor, and half of that if the channels are of 16 bits",
        },
    )
