"""How long each stage of a run took, over all its processes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gos_adapt.run_folder import Journal

KEY = "stage times"


class StageTimes:
    """Divides the seconds that a run has worked among its stages.

    Every second belongs to the next stage that was finished: what a killed process had worked counts, too.

    Args:
        journal: Of the run; it remembers the times and knows the seconds.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @property
    def seconds(self) -> dict[str, float]:
        """Of each finished stage, in the order in which they were first finished."""
        return dict(self._journal.get(KEY) or {})

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Time a stage; one that fails is not finished."""
        yield
        seconds = self.seconds
        since_last_s = self._journal.elapsed_s - sum(seconds.values())
        self._journal.put(KEY, seconds | {stage: seconds.get(stage, 0.0) + since_last_s})
