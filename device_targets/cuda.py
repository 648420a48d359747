"""A GPU of NVIDIA's: the least that TVM takes for granted of one."""

from __future__ import annotations

import platform

from device_targets.device import Device

_TAG = "TVM, src/target/tag.cc: every tag of the architecture"


def cuda() -> Device:
    """Describe a GPU of the architecture that TVM assumes where it finds none (compute capability 5.0)."""
    return Device(
        name="cuda",
        kind="cuda",
        description="any GPU of NVIDIA's since Maxwell",
        target={
            "kind": "cuda",
            "arch": "sm_50",
            "thread_warp_size": 32,
            "max_threads_per_block": 1024,
            "max_shared_memory_per_block": 49152,
            "registers_per_block": 65536,
            "host": {"kind": "llvm", "mtriple": f"{platform.machine()}-linux-gnu", "mcpu": "generic"},
        },
        threads=1,
        lanes=32,
        registers=65536,
        memory_bytes=2**30,
        features=frozenset(),
        local=False,
        sources={
            "target": _TAG,
            "threads": "a choice: one multiprocessor, which every one has",
            "lanes": f"{_TAG}: warps of 32",
            "registers": f"{_TAG}: of a block",
            "memory_bytes": "a choice: the least of that generation",
            "features": "none are named: the architecture says it all",
        },
    )
