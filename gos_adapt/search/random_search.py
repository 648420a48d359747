"""Random search over operators: what NSGA-II must beat.

The same seeds, mutation, crossover and duplicate elimination, but nothing is selected: parents are drawn uniformly from
all that was ever bred, whatever became of it.

Reference: ours; the thesis compares with no other search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.core.survival import Survival
from pymoo.operators.selection.rnd import RandomSelection

from gos_adapt.search.nsga import breeding, ready

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymoo.core.population import Population
    from pymoo.core.problem import Problem

    from gos_adapt.search.candidate import Candidate
    from gos_adapt.search.cascade import Settings, Tally


def random_search(seeds: Sequence[Candidate], settings: Settings, random_seed: int, tally: Tally) -> GeneticAlgorithm:
    """Return the algorithm, ready for `ask`; its first answer is the seeds. A `search.nsga.Breeder`."""
    algorithm = GeneticAlgorithm(
        selection=RandomSelection(),
        survival=Everyone(),
        advance_after_initial_infill=True,
        **breeding(seeds, settings, random_seed, tally),
    )
    return ready(algorithm, settings)


class Everyone(Survival):  # type: ignore[misc]
    """Whoever was bred stays a parent."""

    def __init__(self) -> None:
        super().__init__(filter_infeasible=False)

    def _do(self, _problem: Problem, pop: Population, *_: Any, **__: Any) -> Population:
        return pop
