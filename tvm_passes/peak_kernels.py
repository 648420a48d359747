"""Kernels that do nothing useful as fast as a device can: multiply-add in registers, and reading memory.

What they reach are the two roofs of the roofline model (Williams, Waterman, Patterson 2009): no kernel of a network can
compute faster, and none that must fetch its data from memory can fetch it faster.
"""

# mypy: disable-error-code="valid-type, untyped-decorator, no-untyped-def"
# (The nested functions are TVMScript: parsed by TVM, never run; what looks like types are buffers.)

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from tvm_passes.build import target_of
from tvm_passes.compat import IRModule, PrimFunc, T, tvm
from tvm_passes.link import link

if TYPE_CHECKING:
    from pathlib import Path

    from device_targets import Device
    from tvm_passes.pipeline import Parameter

COMPUTE, ALONE, READ = "compute", "compute_alone", "read"
STEPS = 2**18
"""Of each thread's loop over its accumulators: about a millisecond, against microseconds to start the threads."""
READ_BYTES = 2**29
"""Many times the largest last-level cache; less where the device's memory is small."""
STREAMS, CHAINS = 4, 4
"""Places where each thread reads at once, so that the next page of one is found while another is read, and independent
sums of each: together enough to hide the latency of an addition."""


@dataclass(frozen=True)
class PeakKernel:
    """One of them.

    Attributes:
        parameters: Shape and dtype of each.
        work: Floating-point operations, or bytes read, of one run.
    """

    parameters: tuple[Parameter, ...]
    work: int


def build_peak_kernels(device: Device, path: Path) -> dict[str, PeakKernel]:
    """Compile the kernels into the library `path`: `COMPUTE`, the same on one thread as `ALONE`, and `READ`.

    Raises:
        ConfigError: they cannot be linked.
    """
    threads, lanes = device.threads, device.lanes
    registers = device.registers * 3 // 4  # more than latency times units on any core; the rest holds the operands
    steps = min(READ_BYTES, device.memory_bytes // 8) // (4 * threads * STREAMS * CHAINS * lanes)
    values, value = (threads, registers, lanes), (1, registers, lanes)
    array, sums = (threads, STREAMS, steps, CHAINS, lanes), (threads, STREAMS, CHAINS, lanes)
    functions = {COMPUTE: _multiply_add(*values), ALONE: _multiply_add(*value), READ: _read(*array)}
    module = IRModule({name: func.with_attr("global_symbol", name) for name, func in functions.items()})
    target = target_of(device)
    link(tvm.compile(module, target), target, path)
    return {
        COMPUTE: PeakKernel(((values, "float32"),), 2 * STEPS * prod(values)),
        ALONE: PeakKernel(((value, "float32"),), 2 * STEPS * prod(value)),
        READ: PeakKernel(((array, "float32"), (sums, "float32")), 4 * prod(array)),
    }


def _multiply_add(threads: int, registers: int, lanes: int) -> PrimFunc:
    """On every thread and in each register, a chain of dependent x <- x/2 + 1.

    They start from an argument and end in it, so that nothing can be computed beforehand or left out, and approach 2,
    so that no value is ever slow to compute with.
    """

    @T.prim_func
    def multiply_add(values: T.Buffer((threads, registers, lanes), "float32")):
        for thread in T.parallel(threads):
            x = T.alloc_buffer((registers, lanes), "float32", scope="local")
            for register in T.unroll(registers):
                for lane in T.vectorized(lanes):
                    x[register, lane] = values[thread, register, lane]
            for _ in range(STEPS):
                for register in T.unroll(registers):
                    for lane in T.vectorized(lanes):
                        x[register, lane] = x[register, lane] * T.float32(0.5) + T.float32(1)
            for register in T.unroll(registers):
                for lane in T.vectorized(lanes):
                    values[thread, register, lane] = x[register, lane]

    return multiply_add


def _read(threads: int, streams: int, steps: int, chains: int, lanes: int) -> PrimFunc:
    """On every thread, sums of the parts of a long array."""

    @T.prim_func
    def read(
        array: T.Buffer((threads, streams, steps, chains, lanes), "float32"),
        sums: T.Buffer((threads, streams, chains, lanes), "float32"),
    ):
        for thread in T.parallel(threads):
            total = T.alloc_buffer((streams, chains, lanes), "float32", scope="local")
            for stream, chain in T.grid(streams, chains):
                for lane in T.vectorized(lanes):
                    total[stream, chain, lane] = T.float32(0)
            for step in range(steps):
                for stream in T.unroll(streams):
                    for chain in T.unroll(chains):
                        for lane in T.vectorized(lanes):
                            total[stream, chain, lane] += array[thread, stream, step, chain, lane]
            for stream, chain in T.grid(streams, chains):
                for lane in T.vectorized(lanes):
                    sums[thread, stream, chain, lane] = total[stream, chain, lane]

    return read
