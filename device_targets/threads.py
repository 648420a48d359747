"""Start TVM's threads so that what runs them runs as fast as it can, every time."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ONE_CORE_PER_THREAD = -2  # tvm::runtime::threading::ThreadGroup::AffinityMode::kSpecifyOneCorePerThread


def cores_for(threads: int) -> list[int]:
    """Return a core for each of several threads; none where there is one thread, or too few cores: nothing is tied."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return cores if 1 < threads == len(cores) else []


@contextmanager
def tied(cores: Sequence[int]) -> Iterator[None]:
    """Keep the calling thread on the first of `cores` for a while, if there is one."""
    before = os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, cores[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def start_threads(count: int) -> None:
    """Start TVM's threads in this process, each on a core of its own; the calling thread is the first of them.

    Left to itself, TVM ties its workers to cores and lets the calling thread, which computes with them, run anywhere.
    Where the scheduler puts that one beside a worker, both spin on one core, and everything takes twice as long for
    some ten milliseconds: half of all samples on two cores. What the calling thread starts later stays on its core too.
    """
    import tvm

    if not (cores := cores_for(count)):
        return
    tvm.get_global_func("runtime.config_threadpool")(_ONE_CORE_PER_THREAD, count, [str(core) for core in cores])
    os.sched_setaffinity(0, cores[:1])
