"""NVIDIA Jetson Nano: its GPU, which shares the memory with the processor."""

from __future__ import annotations

from device_targets.device import Cache, Device

_QUERY = "deviceQuery on a board (gist.github.com/r7vme/45ad34e9c2e8d8cd1c01d94975ee6bee)"
_POWER = "NVIDIA L4T 32.1, Power Management for Jetson Nano, Supported Modes, 10 W"


def jetson_nano_gpu() -> Device:
    """Describe the GPU of a Jetson Nano of 4 GB in its mode of 10 W."""
    return Device(
        name="jetson-nano-gpu",
        kind="cuda",
        description="NVIDIA Jetson Nano: its GPU, Maxwell, 1 multiprocessor of 128 cores",
        target={
            "kind": "cuda",
            "arch": "sm_53",
            "thread_warp_size": 32,
            "max_threads_per_block": 1024,
            "max_shared_memory_per_block": 49152,
            "registers_per_block": 32768,
            "host": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a57", "num-cores": 4},
        },
        threads=1,
        lanes=32,
        registers=32768,
        memory_bytes=3965 * 2**20,
        features=frozenset(),
        local=False,
        clock_hz=921.6e6,
        macs_per_cycle=128,
        caches=(Cache(2**18, cores=1, ways=None),),
        bandwidth=25.6e9,
        sources={
            "target": _QUERY,
            "threads": f"{_QUERY}: one multiprocessor",
            "lanes": f"{_QUERY}: warps of 32",
            "registers": f"{_QUERY}: of a block",
            "memory_bytes": f"{_QUERY}: 3965 MB, shared with the processor",
            "features": "none are named: the architecture says it all",
            "clock_hz": f"{_POWER}: 921.6 MHz",
            "macs_per_cycle": f"{_QUERY}: 128 cores, of which each begins one",
            "caches": _QUERY,
            "bandwidth": f"{_POWER}: memory at 1600 MHz, and 64 bits by deviceQuery",
        },
    )
