"""A laptop with AVX-512 and its dot product of bytes (VNNI), by the example of an Intel Core i7-1165G7 (2020)."""

from __future__ import annotations

from device_targets.device import Cache, Device
from device_targets.laptop_avx2 import laptop_avx2

_FEATURES = "avx512f avx512cd avx512bw avx512dq avx512vl avx512_vnni"
_ANANDTECH = "AnandTech 16084, Intel's Tiger Lake, page 4"


def laptop_avx512() -> Device:
    """Describe such a laptop."""
    return Device(
        name="laptop-avx512",
        kind="cpu",
        description="a laptop with AVX-512 VNNI, as an Intel Core i7-1165G7: 4 cores",
        target={"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "tigerlake", "num-cores": 4},
        threads=4,
        lanes=16,
        registers=32,
        memory_bytes=8 * 2**30,
        features=laptop_avx2().features | set(_FEATURES.split()),
        local=False,
        clock_hz=4.7e9,
        macs_per_cycle=16,
        caches=(
            Cache(48 * 2**10, cores=1, ways=12),
            Cache(1280 * 2**10, cores=1, ways=20),
            Cache(12 * 2**20, cores=4, ways=12),
        ),
        sources={
            "target": "LLVM, X86.td: tigerlake",
            "threads": "util-linux, tests/expected/lscpu: four cores of two threads each; two on one core share its "
            "units",
            "lanes": "512-bit vectors: Intel Software Developer's Manual, volume 1, 15.1",
            "registers": "32 zmm: Intel Software Developer's Manual, volume 1, 15.1",
            "memory_bytes": "a choice: what such laptops had at least",
            "features": "level x86-64-v4 of the x86-64 psABI, and VNNI by lscpu on an i7-1185G7 "
            "(pastebin.com/KTaL9kkg)",
            "clock_hz": "util-linux, tests/expected/lscpu: at most 4.7 GHz, on one core",
            "macs_per_cycle": "one multiply-add of 16 numbers: measured as fast as two of 8 on Cannon Lake, another of "
            "Intel's for laptops (github.com/pigirons/cpufp, benchmark_result/x64/Intel_Core_i3_8121U.md)",
            "caches": _ANANDTECH,
        },
    )
