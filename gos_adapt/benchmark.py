"""Time whole models against each other: in turns, in one run, with equal thread counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gos_adapt.errors import last_line
from gos_adapt.quantities import Conditions, Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping

Sampler = Callable[[int], Sequence[float]]
"""Takes a number of samples, returns that many latencies in seconds."""

ROUNDS = 20
SAMPLES = 10
SETTLE_S = 0.01
"""Between two contenders: thread pools spin for some milliseconds after their work, and would steal the next one's."""


def interleave(
    contenders: Mapping[str, Sampler], conditions: Callable[[str], Conditions], advance: Callable[[], None]
) -> dict[str, Measurement]:
    """Time contenders in turns.

    Args:
        contenders: Name -> sampler. Its first samples in each turn warm it up and are dropped.
        conditions: Of each contender.
        advance: Called after each round.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    errors: dict[str, str] = {}
    for _ in range(ROUNDS):
        for name, sampler in contenders.items():
            if name in errors:
                continue
            time.sleep(SETTLE_S)
            try:
                samples[name] += list(sampler(SAMPLES + 2))[2:]
            except Exception as failure:  # one contender's failure is that contender's measurement
                errors[name] = last_line(failure)
        advance()
    return {
        name: Measurement((), conditions(name), errors[name])
        if name in errors
        else Measurement(tuple(samples[name]), conditions(name))
        for name in contenders
    }


def wall_clock(run: Callable[[], object]) -> Sampler:
    """Sample a call in this process with the monotonic clock."""

    def sample(count: int) -> list[float]:
        latencies = []
        for _ in range(count):
            start = time.perf_counter()
            run()
            latencies.append(time.perf_counter() - start)
        return latencies

    return sample


def now() -> str:
    """This moment, as dates are written here."""
    return datetime.now(UTC).isoformat(timespec="seconds")
