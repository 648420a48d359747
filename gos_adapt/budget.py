"""The time budget of a run: what is left for searching when delivery is paid for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_RESERVED = 0.25
"""Share of the budget that may be kept for delivery: a smaller budget than delivery takes is overdrawn."""


class Budget:
    """Seconds a run may take over all its processes.

    Args:
        seconds: In all; `None` for no limit.
        elapsed: Seconds that the run has worked.
    """

    def __init__(self, seconds: float | None, elapsed: Callable[[], float]) -> None:
        self._seconds, self._elapsed = seconds, elapsed
        self._reserve_s = 0.0

    def reserve(self, seconds: float) -> None:
        """Keep so much for compiling, verifying and timing what is delivered."""
        self._reserve_s = min(seconds, MOST_RESERVED * (self._seconds or 0.0))

    def left_s(self) -> float:
        """Seconds until the run must end; infinite without a limit."""
        return math.inf if self._seconds is None else self._seconds - self._elapsed()

    def search_s(self) -> float:
        """Seconds left for everything before delivery."""
        return self.left_s() - self._reserve_s
