"""Let the best variants of each kernel meet once more where they will run: inside the model.

Timed alone, a kernel finds its weights in the cache. A variant that trades more weights for less arithmetic, as
Winograd's larger tiles do, looks better there than it is in a network whose weights do not fit. So the whole model is
built once with everybody's first choice, once with the second and once with the third, and the clock is read between
kernels (`gos_adapt.profiling.in_place`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from device_targets.session import TIMED
from gos_adapt.model.random_array import random_arrays
from gos_adapt.profiling.in_place import RUNS, WARM
from gos_adapt.tuning.store import Look
from tvm_passes.build import build
from tvm_passes.schedules import RULES, Variant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from gos_adapt.errors import Rejection
    from gos_adapt.tuning.store import Record, Store
    from gos_adapt.tuning.tuner import Tuner
    from tvm_passes.object_files import ObjectFiles
    from tvm_passes.pipeline import Fused
Array = np.ndarray[Any, Any]

ROUNDS = 15
CLOSE = 1.5
"""A finalist more than so many times slower than the best, alone, is not asked again."""


def contested(fused: Fused, store: Store) -> dict[str, list[Record]]:
    """Return the finalists of each kernel of a model that are close, timed alone, and never met inside a model."""
    found = {}
    for kernel in fused.kernels:
        finalists = store.finalists(kernel)
        close = [record for record in finalists if _latency_s(record) <= CLOSE * _latency_s(finalists[0])]
        if len(close) > 1 and close[0].look == Look.LAST:
            found[kernel] = close
    return found


def settle(
    fused: Fused,
    finalists: Mapping[str, Sequence[Record]],
    tuner: Tuner,
    new_path: Callable[[], Path],
    objects: ObjectFiles,
) -> None:
    """Time finalists in place, and let the store prefer the fastest there.

    Args:
        fused: The model, its function ``main``.
        finalists: What is `contested`; other kernels take what the tuner chooses.
        tuner: Has the store, which gets the latencies in place, and the session.
        new_path: Gives a path for each library.
        objects: Where compiled kernels are kept.

    Raises:
        DeviceError: the model does not run.
    """
    session = tuner.session
    turns = range(max(map(len, finalists.values()), default=0))
    choices = [{kernel: one[min(turn, len(one) - 1)] for kernel, one in finalists.items()} for turn in turns]
    builds = [
        build(fused, session.device, new_path(), partial(_chosen, tuner, choice), RUNS, objects) for choice in choices
    ]
    if not all("main" + TIMED in built.parameters for built in builds):
        return
    libraries = [(session.load(built.path), random_arrays(built.parameters["main"])) for built in builds]
    samples: list[list[Array]] = [[] for _ in libraries]
    for _ in range(ROUNDS):
        for (library, arrays), taken in zip(libraries, samples, strict=True):
            taken.append(np.diff(library.kernel_times("main", arrays), axis=1)[WARM:])
    best = [np.concatenate(taken).min(axis=0) * 1e-9 for taken in samples]
    keys = np.array(fused.keys)
    tuner.store.put(
        replace(record, latency_s=latency_s, look=Look.IN_PLACE)
        for kernel, records in finalists.items()
        for record, latency_s in zip(records, _mean_s(best, keys == kernel), strict=False)
    )
    for built in builds:
        built.path.unlink()


def _latency_s(record: Record) -> float:
    assert record.latency_s is not None, "a finalist was timed"
    return record.latency_s


def _chosen(tuner: Tuner, choice: Mapping[str, Record], kernel: str) -> Variant | Rejection | None:
    return Variant.parse(choice[kernel].variant, RULES) if kernel in choice else tuner.choose(kernel)


def _mean_s(best: Sequence[Array], its: Array) -> list[float]:
    """Mean latency of one kernel's calls (those where `its` is true), turn by turn."""
    return [max(float(latencies[its].mean()), 1e-9) for latencies in best]
