"""NSGA-II over operators: pymoo's algorithm with our sampling, crossover, mutation and duplicate elimination.

An individual's one variable is a `Candidate`. The only constraint says how far a candidate got: 0 or less is feasible,
between 0 and 1 it was judged and lost too much, and every level missed before that adds one. Objectives of candidates
that were never measured are NaN: pymoo ranks infeasible individuals by the constraint alone and never looks at them.

Reference: Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002; thesis 4.3. `X`, `F`, `G`
are pymoo's names for variables, objectives and constraints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination

from gos_adapt.errors import Rejection
from gos_adapt.search.cascade import ILL_TYPED, LEVEL_NAMES, SEEN, objectives
from gos_adapt.search.crossover import cross
from gos_adapt.search.mutation import mutate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gos_adapt.search.candidate import Candidate, Outcome
    from gos_adapt.search.cascade import Settings, Tally

    Array = np.ndarray[Any, Any]
    Breeder = Callable[[Sequence[Candidate], Settings, int, Tally], GeneticAlgorithm]

T = TypeVar("T", bound=GeneticAlgorithm)
ATTEMPTS = 8
"""Mutations or crossovers tried before the parent is handed on unchanged (and then turned away as seen before)."""


def nsga2(seeds: Sequence[Candidate], settings: Settings, random_seed: int, tally: Tally) -> NSGA2:
    """Return the algorithm, ready for `ask`; its first answer is the seeds."""
    return ready(NSGA2(pop_size=settings.population, **breeding(seeds, settings, random_seed, tally)), settings)


def breeding(seeds: Sequence[Candidate], settings: Settings, random_seed: int, tally: Tally) -> dict[str, Any]:
    """How candidates come to be, whatever is selected among them: arguments of a `GeneticAlgorithm`."""
    return {
        "n_offsprings": settings.offspring,
        "sampling": Population.new("X", _column(seeds)),
        "crossover": SubgraphCrossover(settings, tally),
        "mutation": InstructionMutation(settings, tally),
        "eliminate_duplicates": SameOperator(tally),
        "seed": random_seed,
    }


def ready(algorithm: T, settings: Settings) -> T:
    """Set an algorithm up for `ask`."""
    problem = Problem(n_var=1, n_obj=len(settings.objectives), n_ieq_constr=1, vtype=object)
    algorithm.setup(problem, termination=NoTermination())
    return algorithm


def assign(individuals: Sequence[Any], outcomes: Sequence[Outcome], settings: Settings) -> None:
    """Give individuals the objectives and constraint of their outcomes, as often as these change."""
    for individual, outcome in zip(individuals, outcomes, strict=True):
        individual.F = np.array(_objectives(outcome, settings.objectives))
        individual.G = np.array([_violation(outcome)])
        individual.CV = None  # pymoo would keep the one that it computed first


def _objectives(outcome: Outcome, names: Sequence[str]) -> tuple[float, ...]:
    measured = outcome.latency is not None and outcome.latency.ok
    return objectives(outcome, names) if measured or outcome.is_original else (np.nan,) * len(names)


def _violation(outcome: Outcome) -> float:
    if outcome.feasible:
        return 0.0
    missed = len(LEVEL_NAMES) - 1 - LEVEL_NAMES.index(outcome.level)
    return missed + max(outcome.severity, 1e-6)


class SubgraphCrossover(Crossover):  # type: ignore[misc]
    """Two parents give one child: the head of the first with the tail of the second.

    One and not two: of two, pymoo drops the second where an odd number is wanted, and it would count as seen. The
    probability is ours: pymoo makes all children and then takes some.
    """

    def __init__(self, settings: Settings, tally: Tally) -> None:
        super().__init__(n_parents=2, n_offsprings=1, prob=1.0)
        self._probability, self._limits, self._tally = settings.crossover, settings.limits, tally

    def _do(self, _problem: Problem, X: Array, *_: Any, random_state: np.random.Generator, **__: Any) -> Array:  # noqa: N803
        pairs = zip(X[0, :, 0], X[1, :, 0], strict=True)
        return _column([self._cross(one, other, random_state) for one, other in pairs])[np.newaxis]

    def _cross(self, head: Candidate, tail: Candidate, rng: np.random.Generator) -> Candidate:
        if rng.random() >= self._probability:
            return head
        for _ in range(ATTEMPTS):
            child = cross(head.operator, tail.operator, rng, self._limits)
            if not isinstance(child, Rejection):
                return head.child(child, tail)
            self._tally.stopped[ILL_TYPED] += 1
        return head


class InstructionMutation(Mutation):  # type: ignore[misc]
    """One small change; the probability is ours, as with the crossover."""

    def __init__(self, settings: Settings, tally: Tally) -> None:
        super().__init__(prob=1.0)
        self._probability, self._limits, self._tally = settings.mutation, settings.limits, tally

    def _do(self, _problem: Problem, X: Array, *_: Any, random_state: np.random.Generator, **__: Any) -> Array:  # noqa: N803
        return _column([self._mutate(parent, random_state) for parent in X[:, 0]])

    def _mutate(self, parent: Candidate, rng: np.random.Generator) -> Candidate:
        if rng.random() >= self._probability:
            return parent
        for _ in range(ATTEMPTS):
            child = mutate(parent.operator, rng, self._limits)
            if not isinstance(child, Rejection):
                return parent.child(child)
            self._tally.stopped[ILL_TYPED] += 1
        return parent


class SameOperator(DuplicateElimination):  # type: ignore[misc]
    """Turns away every operator that was ever bred before, by its canonical text."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._seen: set[str] = set()
        self._tally = tally

    def _do(self, pop: Population, other: Population | None, is_duplicate: Array) -> Array:
        if other is None:  # pymoo also compares with the population, which is among what was seen
            for i, individual in enumerate(pop):
                text = individual.X[0].operator.text
                is_duplicate[i] = text in self._seen
                self._tally.stopped[SEEN] += text in self._seen
                self._seen.add(text)
        return is_duplicate


def _column(candidates: Sequence[Candidate]) -> Array:
    """Shape ``(n, 1)``, as pymoo wants its variables."""
    column = np.empty((len(candidates), 1), dtype=object)
    column[:, 0] = candidates
    return column
