"""This machine as a device: an RPC device like any other, whose numbers are read instead of written down."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from device_targets.device import Device

# Vector width by CPU flag, widest first: (flag, float32 lanes, vector registers). Registers: Intel SDM vol. 1, 5.1 and
# 15.1 (16 ymm, 32 zmm); Arm ARM DDI 0487, B1.2.1 (32 V registers).
_VECTORS = (("avx512f", 16, 32), ("avx2", 8, 16), ("asimd", 4, 32), ("sse2", 4, 16))


def host() -> Device:
    """Describe this machine: cores this process may run on, vector width, memory."""
    threads = len(os.sched_getaffinity(0))
    features = frozenset(_cpu_field("flags", "Features").split())
    lanes, registers = next(((lanes, count) for flag, lanes, count in _VECTORS if flag in features), (1, 16))
    name = _cpu_field("model name", "CPU part") or platform.machine()
    return Device(
        name="host",
        kind="cpu",
        description=f"this machine: {name}, {threads} cores",
        target={"kind": "llvm", "mtriple": f"{platform.machine()}-linux-gnu", "mcpu": "", "num-cores": threads},
        threads=threads,
        lanes=lanes,
        registers=registers,
        memory_bytes=_memory_bytes(),
        features=features,
        local=True,
        sources={
            "threads": "sched_getaffinity",
            "lanes": "/proc/cpuinfo",
            "registers": "instruction set manual, by the widest vector flag",
            "memory_bytes": "/proc/meminfo MemTotal, or the control group's limit where lower",
            "features": "/proc/cpuinfo",
        },
    )


def _cpu_field(*names: str) -> str:
    """First of the named fields in /proc/cpuinfo, empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return next((fields[name] for name in names if name in fields), "")


def _memory_bytes() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total
