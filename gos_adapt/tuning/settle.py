"""Let the best variants of each kernel meet once more where they will run: inside the model.

Timed alone, a kernel finds its weights in the cache. A variant that trades more weights for less arithmetic, as
Winograd's larger tiles do, looks better there than it is in a network whose weights do not fit. So the whole model is
built once with everybody's first choice, once with the second and once with the third, and the clock is read between
kernels (`gos_adapt.profiling.in_place`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from device_targets.session import TIMED
from gos_adapt.model.random_array import random_arrays
from gos_adapt.profiling.in_place import RUNS, WARM
from tvm_passes.build import build
from tvm_passes.schedules import RULES, Variant

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from device_targets.session import Session
    from gos_adapt.tuning.store import Record, Store
    from tvm_passes.object_files import ObjectFiles
    from tvm_passes.pipeline import Fused
    from tvm_passes.schedule_kernels import Choose

Array = np.ndarray[Any, Any]

ROUNDS = 15
CLOSE = 1.5
"""A finalist this much slower than the best, alone, is not asked again."""


def settle(
    fused: Fused,
    kernels: Collection[str],
    store: Store,
    session: Session,
    new_path: Callable[[], Path],
    objects: ObjectFiles,
) -> None:
    """Time the finalists of newly tuned kernels in place, and let the store prefer the fastest there.

    Args:
        fused: The model, its function ``main``.
        kernels: Keys of those to settle; the others keep their best variant.
        store: Knows the finalists, and gets their latencies in place.
        session: With the device.
        new_path: Gives a path for each library.
        objects: Where compiled kernels are kept.

    Raises:
        DeviceError: the model does not run.
    """
    finalists = {kernel: _close(store.finalists(kernel)) for kernel in kernels}
    finalists = {kernel: records for kernel, records in finalists.items() if len(records) > 1}
    known = {kernel: record for kernel in fused.kernels if (record := store.best(kernel))}
    turns = [
        known | {kernel: records[min(turn, len(records) - 1)] for kernel, records in finalists.items()}
        for turn in range(max(map(len, finalists.values()), default=0))
    ]
    builds = [build(fused, session.device, new_path(), _chooser(turn), RUNS, objects) for turn in turns]
    if not all("main" + TIMED in built.parameters for built in builds):
        return
    libraries = [(session.load(built.path), random_arrays(built.parameters["main"])) for built in builds]
    samples: list[list[Array]] = [[] for _ in libraries]
    for _ in range(ROUNDS):
        for (library, arrays), taken in zip(libraries, samples, strict=True):
            taken.append(np.diff(library.kernel_times("main", arrays), axis=1)[WARM:])
    best = [np.concatenate(taken).min(axis=0) * 1e-9 for taken in samples]
    keys = np.array(fused.keys)
    store.put(
        replace(record, latency_s=latency_s)
        for kernel, records in finalists.items()
        for record, latency_s in zip(records, _mean_s(best, keys == kernel), strict=False)
    )


def _close(records: Sequence[Record]) -> list[Record]:
    latencies = [record.latency_s or 0.0 for record in records]
    return [record for record, latency_s in zip(records, latencies, strict=True) if latency_s <= CLOSE * latencies[0]]


def _chooser(records: Mapping[str, Record]) -> Choose:
    return {kernel: Variant.parse(record.variant, RULES) for kernel, record in records.items()}.get


def _mean_s(best: Sequence[Array], its: Array) -> list[float]:
    """Mean latency of one kernel's calls (those where `its` is true), turn by turn."""
    return [max(float(latencies[its].mean()), 1e-9) for latencies in best]
