"""Parameters: what the adapted group stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gos_adapt.search.candidate import Outcome


def parameters(outcome: Outcome) -> float:
    """PARAM(o): numbers stored by all sites of the group. Reference: thesis, eq. 4.2."""
    return float(outcome.sites * outcome.candidate.operator.parameters)
