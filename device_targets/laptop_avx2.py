"""A laptop with AVX2 and no AVX-512, by the example of an Intel Core i5-8250U (2017, Skylake's core)."""

from __future__ import annotations

from device_targets.device import Cache, Device

_FEATURES = "pni ssse3 sse4_1 sse4_2 popcnt abm movbe bmi1 bmi2 avx avx2 fma f16c"
_DUMP = "x86info on an i5-8250U (gist.github.com/heatd/36c2bc7cdd824b2557d0fda492578034)"


def laptop_avx2() -> Device:
    """Describe such a laptop."""
    return Device(
        name="laptop-avx2",
        kind="cpu",
        description="a laptop with AVX2, as an Intel Core i5-8250U: 4 cores",
        target={"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "skylake", "num-cores": 4},
        threads=4,
        lanes=8,
        registers=16,
        memory_bytes=8 * 2**30,
        features=frozenset(_FEATURES.split()),
        local=False,
        clock_hz=3.4e9,
        macs_per_cycle=16,
        line_bytes=64,
        caches=(
            Cache(32 * 2**10, cores=1, ways=8),
            Cache(256 * 2**10, cores=1, ways=4),
            Cache(6 * 2**20, cores=4, ways=12),
        ),
        bandwidth=38.4e9,
        sources={
            "target": "notebookcheck.com, i5-8250U: Kaby Lake-R, at each clock as fast as Skylake",
            "threads": "notebookcheck.com, i5-8250U: four cores of two threads each; two on one core share its units",
            "lanes": "256-bit vectors: Intel Software Developer's Manual, volume 1, 14.1",
            "registers": "16 ymm: Intel Software Developer's Manual, volume 1, 14.1",
            "memory_bytes": "a choice: what such laptops had at least",
            "features": "level x86-64-v3 of the x86-64 psABI: any laptop of the class has them",
            "clock_hz": "notebookcheck.com, i5-8250U: 3.4 GHz on one core, less on all for longer",
            "macs_per_cycle": "two multiply-adds of 8 numbers (stackoverflow.com/questions/15655835)",
            "line_bytes": _DUMP,
            "caches": _DUMP,
            "bandwidth": "notebookcheck.com, i5-8250U: two channels of 64 bits of DDR4-2400",
        },
    )
