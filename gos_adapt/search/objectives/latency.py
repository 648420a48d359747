"""Latency: what the adapted group takes less than the original one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gos_adapt.cost.measured import change_s

if TYPE_CHECKING:
    from gos_adapt.search.candidate import Outcome


def latency_change_s(outcome: Outcome) -> float:
    """LAT(o): number of sites times (candidate minus original), both measured in one batch; negative is faster.

    Reference: thesis, eq. 4.2, per site instead of per model: only the sites differ.
    """
    if outcome.is_original:
        return 0.0
    assert outcome.latency is not None, "only measured candidates have objectives"
    assert outcome.original_latency is not None, "measured together"
    return outcome.sites * change_s(outcome.latency, outcome.original_latency)
