"""Time whole models against each other: in turns, in one run, with equal thread counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gos_adapt.errors import last_line
from gos_adapt.quantities import Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gos_adapt.quantities import Conditions

Array = np.ndarray[Any, Any]
Sampler = Callable[[int], Sequence[float]]
"""Takes a number of samples, returns that many latencies in seconds."""

ROUNDS = 60
"""Three benchmarks of one run had ratios of medians from 1.13 to 1.18 with twenty, two from 1.13 to 1.15 with sixty."""
SAMPLES = 10
FEWEST_SAMPLES = 3
WARM_UP = 2
"""Samples that begin a turn and are dropped."""
SETTLE_S = 0.01
"""Between two contenders: thread pools spin for some milliseconds after their work, and would steal the next one's."""
LIMIT_S = 30.0
"""For one contender in all rounds. A slow one takes fewer samples a turn, and a very slow one sits turns out."""


@dataclass(frozen=True)
class Contender:
    """A model that is ready to run, with its inputs.

    Attributes:
        sample: Times it.
        outputs: Runs it once.
        conditions: Under what samples are taken now.
    """

    sample: Sampler
    outputs: Callable[[], Sequence[Array]]
    conditions: Callable[[], Conditions]


def interleave(contenders: Mapping[str, Contender], advance: Callable[[], None]) -> dict[str, Measurement]:
    """Time contenders in turns; one that fails has its reason for a measurement.

    Args:
        contenders: By name.
        advance: Called after each round.
    """
    turns = {name: _Turns(contender) for name, contender in contenders.items()}
    for played in range(ROUNDS):
        for turn in turns.values():
            if turn.spent_s <= LIMIT_S * played / ROUNDS:
                turn.take()
        advance()
    return {name: turn.measurement() for name, turn in turns.items()}


class _Turns:
    """The turns of one contender."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.spent_s = 0.0
        self._samples: list[float] = []
        self._error: str | None = None
        self._count = 0

    def take(self) -> None:
        if self._error is not None:
            return
        time.sleep(SETTLE_S)
        start = time.monotonic()
        try:
            self._count = self._count or samples_in_turn(min(self.contender.sample(1)))
            self._samples += list(self.contender.sample(WARM_UP + self._count))[WARM_UP:]
        except Exception as failure:  # one contender's failure is that contender's measurement
            self._error = last_line(failure)
        self.spent_s += time.monotonic() - start

    def measurement(self) -> Measurement:
        samples = () if self._error is not None else tuple(self._samples)
        return Measurement(samples, self.contender.conditions(), self._error)


def duration_s(latency_s: float) -> float:
    """Return how long a contender with this latency takes in all rounds, about."""
    return min(LIMIT_S, ROUNDS * (SETTLE_S + (WARM_UP + samples_in_turn(latency_s)) * latency_s))


def samples_in_turn(latency_s: float) -> int:
    """Return how many samples of a contender with this latency fit into its part of a round."""
    return int(np.clip(LIMIT_S / ROUNDS / latency_s - WARM_UP, FEWEST_SAMPLES, SAMPLES))
