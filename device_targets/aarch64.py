"""Any 64-bit Arm machine with Linux: what every one of them can run; the boards say what they have beyond it."""

from __future__ import annotations

from device_targets.device import Device


def aarch64() -> Device:
    """Describe the least that a 64-bit Arm machine is."""
    return Device(
        name="aarch64",
        kind="cpu",
        description="any 64-bit Arm machine",
        target={"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "generic", "num-cores": 4},
        threads=4,
        lanes=4,
        registers=32,
        memory_bytes=2**30,
        features=frozenset({"fp", "asimd"}),
        local=False,
        sources={
            "threads": "a choice: what the boards listed here have; a thread more or less only shares the work worse",
            "lanes": "128-bit vectors: Arm Architecture Reference Manual for A-profile, DDI 0487, B1.2.1",
            "registers": "V0-V31: DDI 0487, B1.2.1",
            "memory_bytes": "a choice: the smallest of the boards listed here",
            "features": "the calling convention passes numbers in V registers (Procedure Call Standard for the Arm "
            "64-bit Architecture, 6.1.2); names: Linux, Documentation/arch/arm64/elf_hwcaps.rst",
        },
    )
