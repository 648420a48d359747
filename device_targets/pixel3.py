"""Google Pixel 3: Snapdragon 845."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from device_targets.aarch64 import aarch64
from device_targets.device import Cache

if TYPE_CHECKING:
    from device_targets.device import Device

_FEATURES = "fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp"
_S9 = "pytorch/cpuinfo, test/mock/galaxy-s9-us.h: read from a Galaxy S9, which has the same processor"


def pixel3() -> Device:
    """Describe a Pixel 3 by its four fast cores, Kryo 385 Gold.

    LLVM's cortex-a75 has the dot product, which this processor lacks (github.com/google/gemmlowp/issues/175): code for
    it would end in an illegal instruction. What is compiled uses no more than `features`.
    """
    arm = aarch64()
    return replace(
        arm,
        name="pixel3",
        description="Google Pixel 3: Snapdragon 845, 4 of Cortex-A75 (and 4 of A55)",
        target={**arm.target, "mcpu": "cortex-a75"},
        memory_bytes=4 * 2**30,
        features=frozenset(_FEATURES.split()),
        clock_hz=2.8e9,
        macs_per_cycle=4,
        line_bytes=64,
        caches=(
            Cache(64 * 2**10, cores=1, ways=16),
            Cache(256 * 2**10, cores=1, ways=8),
            Cache(2 * 2**20, cores=8, ways=16),
        ),
        bandwidth=29.9e9,
        sources={
            **arm.sources,
            "target": "AnandTech, Qualcomm Announces Snapdragon 845 SoC: Kryo 385 Gold is a Cortex-A75",
            "threads": "a choice: the cluster of fast cores; a kernel shared with slow ones waits for them",
            "memory_bytes": "hothardware.com, Google Pixel 3 XL, before its launch: 4 GB",
            "features": f"{_S9}; github.com/google/gemmlowp/issues/175: no dot product",
            "clock_hz": "researchsnipers.com, a benchmark of a Pixel 3 XL: up to 2.8 GHz; the board says what it is "
            "(cpufreq/cpuinfo_max_freq)",
            "macs_per_cycle": "measured on a Xiaomi Mi 8, which has the same processor: 22.15 GFLOPS of a core, 7.9 a "
            "cycle at 2.8 GHz (github.com/zchrissirhcz/pixel, contrib/flops)",
            "line_bytes": _S9,
            "caches": _S9,
            "bandwidth": "AnandTech, Galaxy S9 review: 29.9 GB/s, four channels of 16 bits of LPDDR4X at 1866 MHz",
        },
    )
