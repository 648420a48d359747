"""Time the kernels of a compiled model where they run: inside the whole, with the caches as the others leave them.

A kernel timed alone finds its weights in the cache that its previous run filled. Inside a model it seldom does, and
for networks whose weights exceed a cache that is a fifth of the latency. So a sister of the model's function reads the
clock between kernels (`tvm_passes.plan_sequence`); one reading costs some twenty nanoseconds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gos_adapt.errors import ModelImportError
from gos_adapt.quantities import Measurement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from device_targets.session import Library, Session

Array = np.ndarray[Any, Any]

FUNCTION = "main"
ROUNDS, SAMPLES, WARM = 12, 4, 2
"""Visits, samples of the whole and of every kernel in each, and runs before them that are not counted."""
RUNS = SAMPLES + WARM
METHOD = "clock_gettime around each kernel, inside the whole model"


def time_in_place(
    session: Session, models: Sequence[tuple[Library, Sequence[Array]]]
) -> list[tuple[Measurement, list[Measurement]]]:
    """Time models as wholes, undisturbed, and each kernel of them in place, all in turns.

    Args:
        session: Where the libraries are loaded.
        models: Libraries built with ``timed_repeats=RUNS``, and what goes in.

    Returns:
        Of each the whole, and its kernels in the order they run; samples at the same position were taken in one run.

    Raises:
        ModelImportError: one has no kernels to time, or something besides; none has run then.
        DeviceError: one does not run.
    """
    if not all(library.times_kernels(FUNCTION) for library, _ in models):
        raise ModelImportError(
            "the model's kernels cannot be timed: it has none, for its outputs are inputs or constants, or does more "
            "than call kernels; give a model that computes its outputs, with all shapes static"
        )
    evaluators = [library.function_evaluator(FUNCTION, inputs) for library, inputs in models]
    wholes: list[list[float]] = [[] for _ in models]
    parts: list[list[Array]] = [[] for _ in models]
    for _ in range(ROUNDS):
        for k, (library, inputs) in enumerate(models):
            wholes[k] += evaluators[k](1, RUNS)[WARM:]
            parts[k].append(np.diff(library.kernel_times(FUNCTION, inputs), axis=1)[WARM:])
    conditions = session.conditions()
    in_place = replace(conditions, method=METHOD)
    timed = []
    for whole, part in zip(wholes, parts, strict=True):
        seconds = np.maximum(np.concatenate(part), 1) * 1e-9  # a kernel below the clock's resolution took some of it
        kernels = [Measurement(tuple(column), in_place) for column in seconds.T.tolist()]
        timed.append((Measurement(tuple(whole), conditions), kernels))
    return timed
