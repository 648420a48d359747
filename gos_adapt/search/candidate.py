"""What the search breeds and what it learns about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gos_adapt.instructions import INSTRUCTIONS
from gos_adapt.instructions.base import Kind

if TYPE_CHECKING:
    from gos_adapt.model.model import Array
    from gos_adapt.operators.graph import OperatorGraph
    from gos_adapt.quantities import Measurement, Prediction

    Weights = tuple[Array, ...]


ORIGINAL = "original"
"""The level of the operator that is there already."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """An operator for every site of a group, each with its own weights.

    Attributes:
        operator: Canonical; its key is the candidate's identity.
        weights: One tuple a site: where fitting starts.
        lineage: How it came to be, oldest first.
        family: Of the seed that it is (`Seed.family`); `None` for one that was bred.
    """

    operator: OperatorGraph
    weights: tuple[Weights, ...]
    lineage: tuple[str, ...]
    family: str | None = None

    def child(self, operator: OperatorGraph, origin: str, *others: Candidate) -> Candidate:
        """Return a candidate for `operator` that inherits from this one, then from `others`, where shapes agree."""
        parents = (self, *others)
        weights = tuple(
            inherit(operator, [value for parent in parents for value in parent.weights[k]])
            for k in range(len(self.weights))
        )
        return Candidate(operator, weights, (*self.lineage, origin))


def inherit(operator: OperatorGraph, ancestors: Sequence[Array]) -> Weights:
    """Give each weight leaf the first unused ancestor of its shape, and fresh weights to the rest."""
    unused = list(ancestors)
    weights = []
    for leaf in operator.weights:
        shape = operator.nodes[leaf].shape
        match = next((i for i, array in enumerate(unused) if array.shape == shape), None)
        weights.append(_fresh(operator, leaf) if match is None else unused.pop(match))
    return tuple(weights)


def _fresh(operator: OperatorGraph, leaf: int) -> Array:
    """He-normal for a layer (always the same for the same shape); one number a channel as its instruction says."""
    shape = operator.nodes[leaf].shape
    if len(shape) == 1:
        return np.full(shape, _initial(operator, leaf), np.float32)
    fan_in = shape[0] if len(shape) == 2 else math.prod(shape[1:])
    normal = np.random.default_rng(shape).standard_normal(shape)
    return np.asarray(normal * np.sqrt(2 / fan_in), np.float32)


def _initial(operator: OperatorGraph, leaf: int) -> float:
    """Ones for a scale, zeros for a bias ..., as the first instruction that reads the leaf wants it."""
    reader = next((node for node in operator.nodes if leaf in node.args), None)
    initial = INSTRUCTIONS[reader.op].initial if reader else ()
    if reader is None or not initial:
        return 0.0
    return initial[reader.args.index(leaf) - INSTRUCTIONS[reader.op].arguments.count(Kind.FEATURE)]


@dataclass(frozen=True)
class Judgement:
    """What a candidate costs the model, with the weights for which that holds.

    Attributes:
        score: The adapted model's metric on the selection split; `None` without a task.
        drop: What was lost, to be compared with epsilon: in the metric's terms, or without a task the largest deviation
            of an output relative to the outputs' scale.
        weights: One tuple a site.
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
