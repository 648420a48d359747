"""Time again, on tuned schedules, what was measured on guessed ones.

A guessed schedule tells candidates apart in seconds, but not well: on one machine a branch narrowed to half ran at 0.94
of the original's latency as guessed, and at 0.63 of it tuned. Tuning takes seconds for each kernel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from gos_adapt.quantities import Measurement
from gos_adapt.strategies.setting import graph_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gos_adapt.model.model import Array, Model, Site
    from gos_adapt.operators.graph import OperatorGraph
    from gos_adapt.search.candidate import Outcome
    from gos_adapt.strategies.setting import Setting

    Contest = tuple[tuple[Site, ...], Sequence[Outcome]]
    """Alike sites, and what may replace them."""
    Operator = tuple[OperatorGraph, tuple[Array, ...]]

T = TypeVar("T")


def timed_tuned(
    setting: Setting, model: Model, contests: Sequence[Contest], time_left: Callable[[], float]
) -> list[list[Outcome]]:
    """Give outcomes the latencies on tuned schedules; those that are not reached in time keep the ones they have.

    The originals come first, then the first operator of every contest before any second.

    Args:
        setting: The device and the run.
        model: The sites' model.
        contests: What to time.
        time_left: Seconds; at 0 no other operator is tuned.
    """
    journal = setting.folder.journal
    waiting = [contest for contest in contests if contest[1] and _key(model, contest) not in journal]
    if waiting:
        found = _tuned_and_timed(setting, [_operators(contest) for contest in waiting], time_left)
        for contest, latencies in zip(waiting, found, strict=True):
            journal.put(_key(model, contest), [latency.to_json() for latency in latencies])
    return [_with_latencies(outcomes, journal.get(_key(model, (sites, outcomes)))) for sites, outcomes in contests]


def _tuned_and_timed(
    setting: Setting, groups: Sequence[Sequence[Operator]], time_left: Callable[[], float]
) -> list[list[Measurement]]:
    """For each group of operators the latencies of as many, from the first on, as could be tuned; none of one alone."""
    workbench = setting.workbench
    tuned = [0] * len(groups)
    with setting.progress.stage("tune what was found", sum(map(len, groups))) as advance:
        for number, operator in in_turn(groups):
            if time_left() <= 0:
                break
            workbench.tune_operator(*operator)
            tuned[number] += 1
            advance()
    found = []
    with setting.progress.stage("time what was found, tuned", len(groups)) as advance:
        for operators, count in zip(groups, tuned, strict=True):
            found.append(workbench.measure_operators(operators[:count], tuned=True) if count > 1 else [])
            advance()
    return found


def in_turn(groups: Sequence[Sequence[T]]) -> Iterator[tuple[int, T]]:
    """The first of every group, with the group's number, before any second."""
    for turn in range(max(map(len, groups), default=0)):
        yield from ((number, members[turn]) for number, members in enumerate(groups) if turn < len(members))


def _key(model: Model, contest: Contest) -> str:
    sites, outcomes = contest
    names, keys = (site.name for site in sites), (outcome.candidate.operator.key for outcome in outcomes)
    return f"tuned:{graph_key(model)}:{'+'.join(names)}:{'+'.join(keys)}"


def _operators(contest: Contest) -> list[Operator]:
    """The original, and what may replace it at the first site."""
    sites, outcomes = contest
    others = [(outcome.candidate.operator, outcome.candidate.weights[0]) for outcome in outcomes]
    return [(sites[0].operator, sites[0].weights), *others]


def _with_latencies(outcomes: Sequence[Outcome], forms: Sequence[dict[str, Any]] | None) -> list[Outcome]:
    """Outcomes with what was measured of the original and of as many of them as were tuned."""
    if not forms:
        return list(outcomes)
    original, *latencies = [Measurement.from_json(form) for form in forms]
    again = [
        replace(outcome, latency=latency, original_latency=original)
        for outcome, latency in zip(outcomes, latencies, strict=False)
    ]
    return [*again, *outcomes[len(again) :]]
