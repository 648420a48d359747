"""What a kernel schedule needs to know about a CPU core, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cpu:
    """One CPU as the schedules see it.

    Attributes:
        lanes: float32 lanes of one vector register (AVX2: 8, AVX-512: 16, NEON: 4).
        registers: Vector registers a kernel may keep accumulators and operands in.
        threads: Threads that run one kernel.
        memory_operands: Whether arithmetic takes an operand from memory (x86), or only from registers (Arm).
        serial_below: Multiply-accumulates (or moved elements) below which handing work to another thread costs more
            than it saves: a first guess, which tuning corrects.
    """

    lanes: int
    registers: int
    threads: int
    memory_operands: bool = True
    serial_below: int = 30_000

    def block(self, channels: int) -> int:
        """Channels stored side by side for a tensor of `channels`: the most lanes that divide it, 1 for none."""
        lanes = self.lanes
        while lanes >= 4:
            if channels % lanes == 0:
                return lanes
            lanes //= 2
        return 1


def divisors(size: int, limit: int) -> list[int]:
    """Return the divisors of `size` that are at most `limit`, ascending; at least 1."""
    return [divisor for divisor in range(1, max(1, min(size, limit)) + 1) if size % divisor == 0]
