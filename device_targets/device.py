"""What is known about a device: data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Cache:
    """A cache for data.

    Attributes:
        size_bytes: Of one.
        cores: That share it.
        ways: Lines that may hold one address; `None` where no source tells.
    """

    size_bytes: int
    cores: int
    ways: int | None


@dataclass(frozen=True)
class Device:
    """One device.

    What no source tells is `None`, or empty. Where a processor has cores of two kinds, numbers are of the fast ones.
    A GPU's cores are its multiprocessors, their vectors its warps; its registers are those of a block of threads.

    Attributes:
        name: What `--target` takes.
        kind: What it computes with.
        description: One line for people.
        target: TVM target as a dict; an empty ``mcpu`` means "ask LLVM what this machine is".
        threads: Threads a kernel may use: one for each core.
        lanes: float32 lanes of one vector register.
        registers: Vector registers.
        memory_bytes: What a model and its intermediate results must fit into.
        features: What the CPU can do, in the names of /proc/cpuinfo; code for the device uses nothing else.
        local: Whether it is this machine.
        sources: Where each number comes from, by attribute.
        clock_hz: The highest clock.
        macs_per_cycle: float32 multiply-accumulates that a core begins in a cycle, at best.
        line_bytes: Of every cache.
        caches: From the one beside a core to the last before memory.
        bandwidth: Bytes a second between memory and processor, by the data sheet.
        copy_bandwidth: Bytes a second that somebody measured while one thread copied: those read and those written.
        power_w: Of the whole board: idle, and with all cores busy.
    """

    name: str
    kind: Literal["cpu", "cuda"]
    description: str
    target: Mapping[str, object]
    threads: int
    lanes: int
    registers: int
    memory_bytes: int
    features: frozenset[str]
    local: bool
    sources: Mapping[str, str]
    clock_hz: float | None = None
    macs_per_cycle: int | None = None
    line_bytes: int | None = None
    caches: tuple[Cache, ...] = ()
    bandwidth: float | None = None
    copy_bandwidth: float | None = None
    power_w: tuple[float, float] | None = None

    @property
    def architecture(self) -> str:
        """The instruction set of its CPU, or of the one beside its GPU, as ``uname -m`` calls it."""
        cpu = self.target.get("host", self.target)
        assert isinstance(cpu, Mapping)
        return str(cpu["mtriple"]).partition("-")[0]

    @property
    def peak_flops(self) -> float | None:
        """float32 operations a second that all threads could do at best, by clock and width: a bound, not measured."""
        if self.clock_hz is None or self.macs_per_cycle is None:
            return None
        return 2 * self.macs_per_cycle * self.clock_hz * self.threads
