"""Start TVM's threads so that what runs them runs as fast as it can, every time."""

from __future__ import annotations

import os

_ONE_CORE_PER_THREAD = -2  # tvm::runtime::threading::ThreadGroup::AffinityMode::kSpecifyOneCorePerThread


def start_threads(count: int) -> None:
    """Start TVM's threads in this process, each on a core of its own; the calling thread is the first of them.

    Left to itself, TVM ties its workers to cores and lets the calling thread, which computes with them, run anywhere.
    Where the scheduler puts that one beside a worker, both spin on one core, and everything takes twice as long for
    some ten milliseconds: half of all samples on two cores. What the calling thread starts later stays on its core too.
    """
    import tvm

    cores = sorted(os.sched_getaffinity(0))[:count]
    if count < 2 or len(cores) < count:
        return
    tvm.get_global_func("runtime.config_threadpool")(_ONE_CORE_PER_THREAD, count, [str(core) for core in cores])
    os.sched_setaffinity(0, cores[:1])
