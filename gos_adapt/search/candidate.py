"""What the search breeds and what it learns about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gos_adapt.model.model import Array
    from gos_adapt.operators.graph import OperatorGraph
    from gos_adapt.quantities import Measurement, Prediction
    from gos_adapt.search.legal import Child

    Weights = tuple[Array, ...]


ORIGINAL = "original"
"""The level of the operator that is there already."""
NO_NUMBER = float(np.finfo(np.float32).max)
"""What is lost by what computes infinity or no number."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """An operator for every site of a group, each with its own weights.

    Attributes:
        operator: Canonical; its key is the candidate's identity.
        weights: One tuple a site: where fitting starts.
        lineage: How it came to be, oldest first.
        family: Of the seed that it is (`Seed.family`); `None` for one of no family, or bred.
    """

    operator: OperatorGraph
    weights: tuple[Weights, ...]
    lineage: tuple[str, ...]
    family: str | None = None

    def child(self, bred: Child, *others: Candidate) -> Candidate:
        """Return a candidate for what was bred from this one and `others`, with the weights that it has from them."""
        weights = tuple(
            bred.weights([value for parent in (self, *others) for value in parent.weights[k]])
            for k in range(len(self.weights))
        )
        return Candidate(bred.operator, weights, (*self.lineage, bred.origin))


@dataclass(frozen=True)
class Judgement:
    """What a candidate costs the model, with the weights for which that holds.

    Attributes:
        score: The adapted model's metric on the selection split; `None` where a judge scores nothing.
        drop: What was lost, to be compared with epsilon. In the metric's terms with `AccuracyJudge`; with `LossJudge`
            the distillation loss of the first site's replacement; with `EquivalenceJudge`, without a task, the largest
            deviation of an output relative to the outputs' scale.
        weights: One tuple a site; what no judge fitted is as it was.
    """

    score: float | None
    drop: float
    weights: tuple[Weights, ...]


@dataclass(frozen=True, eq=False)
class Outcome:
    """How far a candidate came in the cascade, and what was found on the way.

    Attributes:
        level: Name of the last level it entered.
        reason: Why that level stopped it; `None` while it is alive, and for good once it is feasible.
        severity: In [0, 1): how badly it failed there, for ordering the infeasible.
        prediction: Latency of one site.
        fit_error: Of the group's first site.
        latency: Measured, of one site.
        original_latency: Of the original operator in the same batch.
        sites: How many sites the group has.
        judgement: Accuracy and final weights.
    """

    candidate: Candidate
    sites: int
    level: str = "bred"
    reason: str | None = None
    severity: float = 0.0
    prediction: Prediction | None = None
    fit_error: float | None = None
    latency: Measurement | None = None
    original_latency: Measurement | None = None
    judgement: Judgement | None = None

    @property
    def is_original(self) -> bool:
        """Whether this is the operator that the sites compute now."""
        return self.level == ORIGINAL

    @property
    def feasible(self) -> bool:
        """Whether it was judged and met the accuracy constraint."""
        return self.judgement is not None and self.reason is None

    @property
    def waiting(self) -> bool:
        """Whether it came through everything but the judgement."""
        return self.latency is not None and self.judgement is None and self.reason is None

    def stopped(self, reason: str, severity: float = 0.5) -> Outcome:
        """Return this outcome, stopped at its level."""
        return replace(self, reason=reason, severity=severity)


Objective = Callable[[Outcome], float]
