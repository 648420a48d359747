"""Loss: what the adapted group costs the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gos_adapt.search.candidate import Outcome


def loss(outcome: Outcome) -> float:
    """Return the judgement's drop; before the judgement 0, the least it can be, so that nothing is ruled out unseen."""
    return 0.0 if outcome.judgement is None else outcome.judgement.drop
