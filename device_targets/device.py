"""What is known about a device: data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        name: What `--target` takes.
        kind: What it computes with.
        description: One line for people.
        target: TVM target as a dict; an empty ``mcpu`` means "ask LLVM what this machine is".
        threads: Threads a kernel may use.
        lanes: float32 lanes of one vector register.
        registers: Vector registers.
        memory_bytes: What a model and its intermediate results must fit into.
        features: What the CPU can do, in the names of /proc/cpuinfo; code for the device uses nothing else.
        local: Whether it is this machine.
        sources: Where each number comes from, by attribute.
    """

    name: str
    kind: Literal["cpu"]
    description: str
    target: Mapping[str, object]
    threads: int
    lanes: int
    registers: int
    memory_bytes: int
    features: frozenset[str]
    local: bool
    sources: Mapping[str, str]

    @property
    def architecture(self) -> str:
        """The instruction set it runs, as ``uname -m`` calls it."""
        return str(self.target["mtriple"]).partition("-")[0]
