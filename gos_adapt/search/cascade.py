"""The cascade: cheapest test first, so that most candidates die before anything expensive.

`LEVELS` is the algorithm. A level takes a batch of living outcomes and returns them with what it found, some of them
stopped with a reason. Before the first level, breeding has turned away what is ill-typed or was seen before; the same
`Tally` counts both.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gos_adapt.cost.counted import counted_cost
from gos_adapt.errors import DeviceError
from gos_adapt.operators.graph import THESIS, Limits
from gos_adapt.operators.hints import is_hinted
from gos_adapt.quantities import Measurement
from gos_adapt.run_folder import arrays_file
from gos_adapt.search.candidate import ORIGINAL, Candidate, Judgement, Outcome
from gos_adapt.search.objectives import OBJECTIVES
from gos_adapt.search.objectives.latency import latency_change_s
from gos_adapt.task import is_acceptable

if TYPE_CHECKING:
    from gos_adapt.model.model import Site
    from gos_adapt.operators.graph import OperatorGraph
    from gos_adapt.quantities import Prediction
    from gos_adapt.run_folder import RunFolder
    from gos_adapt.search.candidate import Weights

TRUST = 4
"""How fast a saving loses its worth with the error of the fit. On ResNet-20 one convolution's error of 0.1 costs a
fraction of a point of accuracy, of 0.4 a whole point; in a branch several times as much."""
TOGETHER = 8
"""Candidates measured in one batch: more would overrun the time of a short search, fewer compile the original often."""
ILL_TYPED = "ill-typed"
"""Counts attempts at breeding: what fails is tried again."""
SEEN = "seen before"
OUT_OF_TIME = "out of time"
"""The reason of a candidate that a level never looked at."""
DOMINATED = "dominated by what was judged"


@dataclass(frozen=True)
class Settings:
    """The search's numbers.

    Attributes:
        generations: At most (thesis: 50).
        population: Survivors of a generation.
        offspring: Bred in a generation.
        mutation: Probability (thesis 4.3).
        crossover: Probability (thesis 4.3).
        epsilon: What may be lost: a feasible candidate's drop is at most that.
        prediction_slack: How many times the original's latency a prediction must exceed to be believed.
        max_fit_error: Relative error of the fit from which on a candidate is not measured.
        fit_share: Of the time left that the fits of one generation may take.
        measure_share: Of the time left after them that its measurements may take: the rest is for judging.
        measurements: Most candidates measured in a generation: those that promise most by prediction and fit.
        judgements: Most candidates judged in a generation.
        objectives: What is minimised: names of `search.objectives.OBJECTIVES` (thesis eq. 4.2: the first two).
        limits: How large an operator may be that is bred.
    """

    generations: int = 50
    population: int = 24
    offspring: int = 24
    mutation: float = 0.8
    crossover: float = 0.6
    epsilon: float = 0.01
    prediction_slack: float = 1.5
    max_fit_error: float = 0.5
    fit_share: float = 0.3
    measure_share: float = 0.6
    measurements: int = 16
    judgements: int = 3
    objectives: tuple[str, ...] = ("latency change (s)", "parameters")
    limits: Limits = THESIS

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.objectives) - OBJECTIVES.keys()):
            raise ValueError(f"unknown objectives {unknown}; known: {', '.join(OBJECTIVES)}")


@dataclass(frozen=True)
class Context:
    """Everything outside the search that it needs, as plain calls.

    Attributes:
        sites: The group: alike, in model order.
        predict: Latency of an operator on the device.
        fit_error: Relative error of an operator fitted to the group's first site, from initial weights.
        measure: Latencies of operators with weights, all in one batch on the device, in order. All run on guessed
            schedules, so that none has an advantage because its kernels were tuned before.
        judge: Fits an operator to the sites that it looks at from initial weights, perhaps trains it, and says what is
            lost (`Judgement`).
        folder: Keeps every finished evaluation.
        model_key: Of the model as it is now; evaluations of another model do not count.
        time_left: Seconds; the search ends when there are none.
    """

    sites: tuple[Site, ...]
    predict: Callable[[OperatorGraph], Prediction]
    fit_error: Callable[[OperatorGraph, Weights], float]
    measure: Callable[[Sequence[tuple[OperatorGraph, Weights]]], Sequence[Measurement]]
    judge: Callable[[OperatorGraph, tuple[Weights, ...]], Judgement]
    folder: RunFolder
    model_key: str
    time_left: Callable[[], float]

    @property
    def original(self) -> OperatorGraph:
        """What the group's sites compute now."""
        return self.sites[0].operator

    def key(self, what: str, operator: OperatorGraph) -> str:
        """Name of an evaluation in the journal."""
        group = "+".join(site.name for site in self.sites)
        return f"{what}:{self.model_key}:{group}:{operator.key}"

    def remembered(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return the journal's value of `key`; compute and record it if there is none."""
        if key not in self.folder.journal:
            self.folder.journal.put(key, compute())
        return self.folder.journal.get(key)


@dataclass
class Tally:
    """How many candidates each level stopped, and the seconds it took."""

    stopped: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


def run_cascade(
    candidates: Sequence[Candidate], context: Context, settings: Settings, tally: Tally, levels: Levels
) -> list[Outcome]:
    """Take candidates through `levels` (`LEVELS`: all but the judgement); the outcomes are in the candidates' order.

    The original operator, bred like any other, is feasible by definition and skips them all.
    """
    outcomes = [Outcome(candidate, len(context.sites)) for candidate in candidates]
    outcomes = [
        replace(outcome, level=ORIGINAL, judgement=Judgement(None, 0.0, outcome.candidate.weights))
        if outcome.candidate.operator.text == context.original.text
        else outcome
        for outcome in outcomes
    ]
    for name, level in levels.items():
        start = time.perf_counter()
        alive = [i for i, outcome in enumerate(outcomes) if outcome.reason is None and not outcome.is_original]
        entered = [replace(outcomes[i], level=name) for i in alive]
        for i, outcome in zip(alive, level(entered, context, settings), strict=True):
            outcomes[i] = outcome
            tally.stopped[name] += outcome.reason is not None
        tally.seconds[name] += time.perf_counter() - start
    return outcomes


def _counted(outcomes: Sequence[Outcome], context: Context, settings: Settings) -> list[Outcome]:
    original = counted_cost(context.original)

    def hopeless(operator: OperatorGraph) -> bool:
        # the same in another order may be faster
        return counted_cost(operator).no_better_than(original) and not is_hinted(operator, context.original)

    return [
        outcome.stopped("no fewer operations, parameters or bytes than the original")
        if hopeless(outcome.candidate.operator)
        else outcome
        for outcome in outcomes
    ]


def _predicted(outcomes: Sequence[Outcome], context: Context, settings: Settings) -> list[Outcome]:
    limit_s = settings.prediction_slack * context.predict(context.original).latency_s
    predicted = [replace(outcome, prediction=context.predict(outcome.candidate.operator)) for outcome in outcomes]
    return [
        outcome.stopped(f"predicted latency {outcome.prediction.latency_s:.3g} s is above {limit_s:.3g} s")
        if outcome.prediction is not None and outcome.prediction.latency_s > limit_s
        else outcome
        for outcome in predicted
    ]


def _fitted(outcomes: Sequence[Outcome], context: Context, settings: Settings) -> list[Outcome]:
    """Fit within a share of the time, in an order of which every beginning covers all predicted latencies."""
    reserve_s = _kept_s(1 - settings.fit_share, context)
    fitted = list(outcomes)
    ranked = sorted(range(len(fitted)), key=lambda i: _predicted_s(fitted[i]))
    for position in _spread(len(ranked)):
        i = ranked[position]
        fitted[i] = _fit(fitted[i], context, settings, reserve_s)
    return fitted


def _kept_s(share: float, context: Context) -> float:
    """So much of the time left, in seconds, of which there may be no end."""
    left_s = context.time_left()
    return share * left_s if math.isfinite(left_s) else 0.0


def _spread(n: int) -> list[int]:
    """The positions 0 to n - 1, each as far from those before it as can be: the van der Corput sequence in base 2."""
    bits = max(1, (n - 1).bit_length())
    reversed_bits = (int(f"{k:0{bits}b}"[::-1], 2) for k in range(2**bits))
    return [position for position in reversed_bits if position < n]


def _predicted_s(outcome: Outcome) -> float:
    assert outcome.prediction is not None, "predicted before fitting"
    return outcome.prediction.latency_s


def _fit(outcome: Outcome, context: Context, settings: Settings, reserve_s: float) -> Outcome:
    candidate = outcome.candidate
    key = context.key("fit", candidate.operator)
    if key not in context.folder.journal and context.time_left() <= reserve_s:
        return outcome.stopped(OUT_OF_TIME)
    error = context.remembered(key, lambda: _finite(context.fit_error(candidate.operator, candidate.weights[0])))
    if error is None or error > settings.max_fit_error:
        text = "not finite" if error is None else f"{error:.3g}, limit {settings.max_fit_error:.3g}"
        return replace(outcome, fit_error=error).stopped(
            f"relative error of the fit is {text}", 0.99 if error is None else error / (1 + error)
        )
    return replace(outcome, fit_error=error)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _measured(outcomes: Sequence[Outcome], context: Context, settings: Settings) -> list[Outcome]:
    ranked = sorted(outcomes, key=_expected_s)
    late = {id(outcome) for outcome in ranked[settings.measurements :]}
    reserve_s = _kept_s(1 - settings.measure_share, context)
    chosen = iter(timed([outcome for outcome in outcomes if id(outcome) not in late], context, reserve_s))
    return [
        outcome.stopped(f"{settings.measurements} others promised more")
        if id(outcome) in late
        else _better(next(chosen), context, settings)
        for outcome in outcomes
    ]


def _better(outcome: Outcome, context: Context, settings: Settings) -> Outcome:
    if outcome.reason is not None:
        return outcome
    original = Outcome(Candidate(context.original, (), ()), outcome.sites, level=ORIGINAL)
    values = zip(objectives(outcome, settings.objectives), objectives(original, settings.objectives), strict=True)
    if all(own >= originals for own, originals in values):
        return outcome.stopped("measured, and better than the original in nothing that is minimised")
    return outcome


def _expected_s(outcome: Outcome) -> float:
    """Predicted latency, held against the error of the fit: an error of 1 makes every saving worthless."""
    assert outcome.fit_error is not None, "fitted before measuring"
    return _predicted_s(outcome) / max(1e-9, 1 - outcome.fit_error) ** TRUST


def timed(outcomes: Sequence[Outcome], context: Context, reserve_s: float = 0.0) -> list[Outcome]:
    """Measure in batches, each with the original, until `reserve_s` is left; one that was not measured is stopped."""
    missing = [
        outcome.candidate
        for outcome in outcomes
        if context.key("latency", outcome.candidate.operator) not in context.folder.journal
    ]
    for start in range(0, len(missing), TOGETHER):
        if context.time_left() <= reserve_s:
            break
        together = missing[start : start + TOGETHER]
        batch = [(context.original, context.sites[0].weights), *((c.operator, c.weights[0]) for c in together)]
        original, *measurements = context.measure(batch)
        if original.error:
            raise DeviceError(f"timing the original operator failed: {original.error}; try the same command again")
        for candidate, measurement in zip(together, measurements, strict=True):
            pair = [measurement.to_json(), original.to_json()]
            context.folder.journal.put(context.key("latency", candidate.operator), pair)
    return [_with_latency(outcome, context) for outcome in outcomes]


def _with_latency(outcome: Outcome, context: Context) -> Outcome:
    pair = context.folder.journal.get(context.key("latency", outcome.candidate.operator))
    if pair is None:
        return outcome.stopped(OUT_OF_TIME)
    latency, original = (Measurement.from_json(form) for form in pair)
    for measurement in (latency, original):
        if not measurement.ok:
            return replace(outcome, latency=latency, original_latency=original).stopped(
                f"not measured: {measurement.error}", 0.9
            )
    return replace(outcome, latency=latency, original_latency=original)


Level = Callable[[Sequence[Outcome], Context, Settings], list[Outcome]]
Levels = Mapping[str, Level]
LEVELS: Levels = {
    "counted cost": _counted,
    "predicted latency": _predicted,
    "fit": _fitted,
    "measured latency": _measured,
}
ACCURACY = "accuracy"
"""The last level, `judge`: it looks at the whole front, so it runs once a generation over all that wait."""
LEVEL_NAMES = (ILL_TYPED, SEEN, *LEVELS, ACCURACY)


def judge(
    waiting: Sequence[Outcome], front: Sequence[Outcome], context: Context, settings: Settings, tally: Tally
) -> list[Outcome]:
    """Judge the candidates that would enter the front if they were feasible, the most promising first.

    Promising is a large gain in latency and a small error of the fit; with a gain of none, few parameters decide. Those
    not reached, by number or by time, stay as they were and wait. The others are stopped: a front only advances.

    Returns:
        The outcomes in the order of `waiting`.
    """
    start = time.perf_counter()
    outcomes = list(waiting)
    current = list(front)
    judged = 0
    for i in sorted(range(len(outcomes)), key=lambda i: _promise(outcomes[i]), reverse=True):
        if any(dominates(other, outcomes[i], settings.objectives) for other in current):
            # before anything that depends on the time: a repeated search must stop the same ones
            outcomes[i] = replace(outcomes[i], level=ACCURACY).stopped(DOMINATED)
            tally.stopped[ACCURACY] += 1
            continue
        known = _judgement_key(outcomes[i], context) in context.folder.journal
        if judged == settings.judgements or (not known and context.time_left() <= 0):
            break
        outcomes[i] = judge_one(replace(outcomes[i], level=ACCURACY), context, settings)
        tally.stopped[ACCURACY] += outcomes[i].reason is not None
        current += [outcomes[i]] if outcomes[i].feasible else []
        judged += 1
    tally.seconds[ACCURACY] += time.perf_counter() - start
    return outcomes


def objectives(outcome: Outcome, names: Sequence[str]) -> tuple[float, ...]:
    """Values of a measured outcome in the order of `names`."""
    return tuple(OBJECTIVES[name](outcome) for name in names)


def _promise(outcome: Outcome) -> tuple[float, float]:
    change_s = latency_change_s(outcome)
    assert outcome.fit_error is not None, "measured after fitting"
    trust = max(0.0, 1 - outcome.fit_error) ** TRUST
    return (-change_s * trust if change_s < 0 else -change_s, -outcome.candidate.operator.parameters)


def dominates(one: Outcome, other: Outcome, names: Sequence[str]) -> bool:
    """Whether `one` is different in no objective for the worse, and in some for the better."""
    mine, theirs = objectives(one, names), objectives(other, names)
    return all(a <= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs


def judge_one(outcome: Outcome, context: Context, settings: Settings) -> Outcome:
    """Say what a candidate costs the model; stopped if that is too much."""
    judgement = _remembered_judgement(outcome.candidate, _judgement_key(outcome, context), context)
    outcome = replace(outcome, judgement=judgement)
    if is_acceptable(judgement.drop, settings.epsilon):
        return outcome
    excess = judgement.drop - settings.epsilon
    text = f"loses {judgement.drop:.4g}, allowed is {settings.epsilon:.4g}"
    return outcome.stopped(text, excess / (1 + excess))


def _judgement_key(outcome: Outcome, context: Context) -> str:
    return context.key("judgement", outcome.candidate.operator)


def _remembered_judgement(candidate: Candidate, key: str, context: Context) -> Judgement:
    """The judgement in the run folder: numbers in the journal, weights in a file that is written first."""
    file = arrays_file("weights", key)
    if key not in context.folder.journal:
        fresh = context.judge(candidate.operator, candidate.weights)
        arrays = {f"{k}.{i}": array for k, own in enumerate(fresh.weights) for i, array in enumerate(own)}
        context.folder.save_arrays(file, arrays)
        context.folder.journal.put(key, [fresh.score, fresh.drop])
    score, drop = context.folder.journal.get(key)
    arrays = context.folder.require_arrays(file)
    count = len(candidate.operator.weights)
    weights = tuple(tuple(arrays[f"{k}.{i}"] for i in range(count)) for k in range(len(context.sites)))
    return Judgement(score, drop, weights)
