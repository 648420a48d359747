"""Time the kernels of a compiled model where they run: inside the whole, with the caches as the others leave them.

A kernel timed alone finds its weights in the cache that its previous run filled. Inside a model it seldom does, and
for networks whose weights exceed a cache that is a fifth of the latency. So a sister of the model's function reads the
clock between kernels (`tvm_passes.plan_sequence`); one reading costs some twenty nanoseconds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gos_adapt.quantities import Measurement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from device_targets.session import Library, Session

Array = np.ndarray[Any, Any]

ROUNDS, SAMPLES, WARM = 12, 4, 2
"""Visits, samples of the whole and of every kernel in each, and runs before them that are not counted."""
RUNS = SAMPLES + WARM
METHOD = "clock_gettime around each kernel, inside the whole model"


def time_in_place(
    session: Session, library: Library, inputs: Sequence[Array], function: str = "main"
) -> tuple[Measurement, list[Measurement]]:
    """Time a function as a whole, undisturbed, and each kernel of it in place, in turns.

    Args:
        session: Where the library is loaded.
        library: Built with ``timed_repeats=RUNS``.
        inputs: Of the function.
        function: Which.

    Returns:
        The whole, and its kernels in the order they run; samples at the same position were taken in the same run.

    Raises:
        DeviceError: it does not run.
    """
    evaluate = library.function_evaluator(function, inputs)
    whole: list[float] = []
    parts: list[Array] = []
    for _ in range(ROUNDS):
        whole += evaluate(1, RUNS)[WARM:]
        parts.append(np.diff(library.kernel_times(function, inputs), axis=1)[WARM:])
    conditions = session.conditions()
    seconds = np.maximum(np.concatenate(parts), 1) * 1e-9  # a kernel below the clock's resolution took some of it
    in_place = replace(conditions, method=METHOD)
    kernels = [Measurement(tuple(column), in_place) for column in seconds.T.tolist()]
    return Measurement(tuple(whole), conditions), kernels
