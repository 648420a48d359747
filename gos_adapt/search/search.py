"""Search: breed operators for a group of alike sites, keep what is faster or smaller and still right.

1. Seeds: the original operator and its known relatives.
2. Each generation: breed (`nsga`), take the offspring through the cascade, judge what would enter the front.
3. Until the generations or the time are over, or breeding gives nothing new and nothing waits.

Deterministic: the same seed, context and journal give the same evaluations. Every finished evaluation is in the
journal, and how many generations are complete: these are repeated without time, so that what was too late for one is
too late again. A search that was cut so goes on from its own history.

Reference: thesis, algorithm 5.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gos_adapt.cost.measured import clearly_faster
from gos_adapt.instructions.base import Kind
from gos_adapt.operators.graph import LEAVES, THESIS, Limits, OperatorGraph
from gos_adapt.operators.seeds import seeds as relatives
from gos_adapt.search.candidate import Candidate, Outcome
from gos_adapt.search.cascade import ILL_TYPED, LEVELS, Tally, dominates, judge, objectives, run_cascade
from gos_adapt.search.nsga import assign, nsga2

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pymoo.algorithms.base.genetic import GeneticAlgorithm
    from pymoo.core.population import Population

    from gos_adapt.model.model import Site
    from gos_adapt.search.cascade import Context, Levels, Settings
    from gos_adapt.search.nsga import Breeder


@dataclass(frozen=True)
class Front:
    """What a search found.

    Attributes:
        outcomes: Every candidate that was bred and legal, in the order of breeding.
        best: The feasible, non-dominated ones, the fastest first; never the original itself.
        stopped: How many candidates each level stopped.
        seconds: What each level took; breeding is that of the ill-typed.
    """

    outcomes: tuple[Outcome, ...]
    best: tuple[Outcome, ...]
    stopped: Mapping[str, int]
    seconds: Mapping[str, float]

    @property
    def described(self) -> str:
        """How many candidates there were, and where they ended after how long."""
        took = {name: f" ({seconds:.1f} s)" for name, seconds in self.seconds.items()}
        stopped = ", ".join(f"{count} {name}{took.get(name, '')}" for name, count in self.stopped.items() if count)
        return f"{len(self.outcomes)} candidates; stopped: {stopped or 'none'}"


def search(
    context: Context,
    settings: Settings,
    random_seed: int,
    progress: Callable[[int, Front], None] | None = None,
    *,
    name: str = "search",
    breeder: Breeder = nsga2,
    levels: Levels = LEVELS,
) -> Front:
    """Search operators for `context.sites`.

    Args:
        context: The group and what evaluates its candidates.
        settings: The numbers.
        random_seed: Of breeding.
        progress: Called after each generation with its number and the front so far.
        name: Of this search in the journal, which holds it once the search is finished.
        breeder: What proposes candidates.
        levels: What they go through before the judgement.
    """
    tally = Tally()
    algorithm = breeder(seed_candidates(context.sites, settings.limits), settings, random_seed, tally)
    outcomes: list[Outcome] = []
    waiting: dict[int, Any] = {}  # position among the outcomes -> pymoo's individual
    journal = context.folder.journal
    finished: int | None = journal.get(name)  # after so many generations
    untimed = replace(context, time_left=lambda: 0.0)
    made = 0
    for generation in range(settings.generations if finished is None else finished):
        repeated = f"{name}:{generation}" in journal
        now = untimed if repeated else context
        offspring = _asked(algorithm, tally)
        bred = [] if offspring is None else list(offspring)
        cascaded = run_cascade([individual.X[0] for individual in bred], now, settings, tally, levels)
        assign(bred, cascaded, settings)
        waiting |= {len(outcomes) + k: bred[k] for k, outcome in enumerate(cascaded) if outcome.waiting}
        outcomes += [_lightened(outcome) for outcome in cascaded]
        feasible = [outcome for outcome in outcomes if outcome.feasible]
        judged = judge([outcomes[i] for i in waiting], feasible, now, settings, tally)
        assign(list(waiting.values()), judged, settings)
        for i, outcome in zip(list(waiting), judged, strict=True):
            outcomes[i] = _lightened(outcome)
            if not outcome.waiting:
                del waiting[i]
        algorithm.tell(infills=offspring)  # also without offspring: what was judged has another rank now
        if not repeated:
            journal.put(f"{name}:{generation}", True)
        made += 1
        if progress is not None:
            progress(generation, _front(outcomes, tally, settings.objectives))
        if not (bred or waiting) or (not repeated and context.time_left() <= 0):
            break
    if finished is None:
        journal.put(name, made)
    return _front(outcomes, tally, settings.objectives)


def _asked(algorithm: GeneticAlgorithm, tally: Tally) -> Population | None:
    start = time.perf_counter()
    offspring = algorithm.ask()
    tally.seconds[ILL_TYPED] += time.perf_counter() - start
    return offspring


def seed_candidates(sites: Sequence[Site], limits: Limits = THESIS) -> list[Candidate]:
    """Return the original and its relatives within `limits`; deterministic, because each draws from its own content.

    A relative that multiplies weights by weights is left out: compiled, the product is one weight as large as before.
    The original is there whatever its size: the others are held against it.
    """
    candidates = []
    for seed in relatives(sites[0].operator, limits):
        if not _multiplies_weights(seed.graph):
            rng = np.random.default_rng(int(seed.graph.key, 16))
            weights = tuple(seed.initial(site.weights, rng) for site in sites)
            candidates.append(Candidate(seed.graph, weights, (f"seed {seed.name}",), seed.family))
    return candidates


def _multiplies_weights(graph: OperatorGraph) -> bool:
    return any(
        node.op not in LEAVES and value.kind is Kind.WEIGHT
        for node, value in zip(graph.nodes, graph.types, strict=True)
    )


def _lightened(outcome: Outcome) -> Outcome:
    """Let go of the weights of a candidate that was stopped: thousands of them would fill the memory."""
    if outcome.reason is None:
        return outcome
    candidate = replace(outcome.candidate, weights=())
    judgement = outcome.judgement and replace(outcome.judgement, weights=())
    return replace(outcome, candidate=candidate, judgement=judgement)


def _front(outcomes: Sequence[Outcome], tally: Tally, names: Sequence[str]) -> Front:
    feasible = [outcome for outcome in outcomes if outcome.feasible and not outcome.is_original]
    best = [outcome for outcome in feasible if not _dominated(outcome, feasible, names)]
    ranked = tuple(sorted(best, key=lambda outcome: objectives(outcome, names)))
    return Front(tuple(outcomes), ranked, dict(tally.stopped), dict(tally.seconds))


def _dominated(outcome: Outcome, others: Sequence[Outcome], names: Sequence[str]) -> bool:
    return any(other is not outcome and other.feasible and dominates(other, outcome, names) for other in others)


def choose(best: Sequence[Outcome]) -> Outcome | None:
    """Return the candidate that is fastest, relative to the original timed beside it; `None` if none is faster."""
    return min(filter(is_faster, best), key=_relative_latency, default=None)


def _relative_latency(outcome: Outcome) -> float:
    assert outcome.latency is not None
    assert outcome.original_latency is not None
    return outcome.latency.median_s / outcome.original_latency.median_s


def is_faster(outcome: Outcome) -> bool:
    """Whether a candidate was measured, and is faster than the original by more than the noise."""
    latency, original = outcome.latency, outcome.original_latency
    if latency is None or original is None or not (latency.ok and original.ok):
        return False
    return clearly_faster(latency, original)
