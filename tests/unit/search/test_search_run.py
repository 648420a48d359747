"""The search: deterministic, resumable, honest about what it stopped and why."""

from dataclasses import replace

import numpy as np
import pytest
from example_models import normal
from example_search import CONDITIONS, QUICK, context_for, counted_latencies, residual_model, sites_named
from pymoo.core.individual import Individual

from gos_adapt.finetune.equivalence import TOLERANCE, EquivalenceJudge
from gos_adapt.operators.canonical import canonicalise
from gos_adapt.operators.graph import THESIS, Limits, Node, typed
from gos_adapt.quantities import Measurement
from gos_adapt.run_folder import RunFolder
from gos_adapt.search import cascade
from gos_adapt.search.candidate import Candidate, Outcome
from gos_adapt.search.cascade import (
    ACCURACY,
    DOMINATED,
    LEVEL_NAMES,
    OUT_OF_TIME,
    Settings,
    Tally,
    dominates,
    objectives,
)
from gos_adapt.search.nsga import assign, nsga2
from gos_adapt.search.random_search import random_search
from gos_adapt.search.search import choose, search, seed_candidates

SETTINGS = Settings(generations=3, population=12, offspring=8, epsilon=0.22, judgements=3)


class CutError(Exception):
    """Stands for whatever ends a process."""


class Recorder:
    """Passes calls on and notes the operators they were for; ends the run after `limit` of them."""

    def __init__(self, call, limit=None):
        self.call, self.limit, self.seen = call, limit, []

    def judge(self, operator, weights):
        self._note(operator)
        return self.call(operator, weights)

    def measure(self, batch):
        for operator, _ in batch[1:]:
            self._note(operator)
        return self.call(batch)

    def _note(self, operator):
        if self.limit is not None and len(self.seen) >= self.limit:
            raise CutError
        self.seen.append(operator.key)


@pytest.fixture(scope="module")
def model():
    return residual_model()


def open_folder(path):
    return RunFolder.open(path, {"test": "search"})


def run(model, path, *, judge_limit=None, measure=counted_latencies, settings=SETTINGS, names=("r1",)):
    """Search in a folder; return the front and what was judged."""
    with open_folder(path) as folder:
        context = context_for(model, sites_named(model, *names), folder, measure=measure)
        recorder = Recorder(context.judge, judge_limit)
        context = context_for(model, context.sites, folder, judge=recorder.judge, measure=measure)
        try:
            return search(context, settings, random_seed=3), recorder.seen
        except CutError:
            return None, recorder.seen


def summary(front):
    return [(o.candidate.operator.key, o.level, o.reason, o.fit_error) for o in front.outcomes]


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    return run(model, tmp_path_factory.mktemp("whole"))


def test_same_seed_gives_the_same_evaluations_and_the_same_choice(model, whole, tmp_path):
    front, judged = run(model, tmp_path)
    assert (summary(front), judged) == (summary(whole[0]), whole[1])
    assert choose(front.best).candidate.operator.key == choose(whole[0].best).candidate.operator.key


def test_of_several_that_are_faster_the_fastest_beside_its_original_is_chosen(whole):
    def timed(candidate, own_s, original_s):
        latencies = (Measurement((seconds,) * 3, CONDITIONS) for seconds in (own_s, original_s))
        return replace(Outcome(candidate, 1), **dict(zip(("latency", "original_latency"), latencies, strict=True)))

    one, two, three, four = (outcome.candidate for outcome in whole[0].outcomes[:4])
    outcomes = [timed(one, 8.0, 9.0), timed(two, 6.0, 10.0), timed(three, 5.0, 6.0), Outcome(four, 1)]
    assert choose(outcomes).candidate is two
    assert choose([timed(one, 9.0, 8.0)]) is None


@pytest.mark.parametrize("finished", [0, 1, 3])
def test_a_cut_search_resumes_without_repeating_a_judgement_and_ends_the_same(model, whole, tmp_path, finished):
    cut, before = run(model, tmp_path, judge_limit=finished)
    assert cut is None
    front, after = run(model, tmp_path)
    assert before + after == whole[1]
    assert summary(front) == summary(whole[0])
    chosen, expected = choose(front.best), choose(whole[0].best)
    for ours, theirs in zip(chosen.judgement.weights[0], expected.judgement.weights[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_finished_search_is_replayed_without_measuring_or_judging(model, tmp_path):
    run(model, tmp_path)
    recorder = Recorder(counted_latencies)
    _, judged = run(model, tmp_path, measure=recorder.measure)
    assert (judged, recorder.seen) == ([], [])


def test_every_candidate_is_counted_once(whole):
    front, _ = whole
    assert sum(front.stopped[name] for name in LEVEL_NAMES[2:]) == sum(o.reason is not None for o in front.outcomes)
    for outcome in front.outcomes:
        assert (outcome.reason is not None) + outcome.feasible + outcome.waiting == 1
    assert len({o.candidate.operator.text for o in front.outcomes}) == len(front.outcomes)


def test_the_front_is_feasible_non_dominated_and_without_the_original(whole, model):
    best = whole[0].best
    original = sites_named(model, "r1")[0].operator
    assert best
    for outcome in best:
        assert outcome.judgement.drop < SETTINGS.epsilon
        assert outcome.candidate.operator.key != original.key
        others = [objectives(other, SETTINGS.objectives) for other in best if other is not outcome]
        mine = objectives(outcome, SETTINGS.objectives)
        assert not any(all(a <= b for a, b in zip(other, mine, strict=True)) for other in others)


def test_more_objectives_keep_more_on_the_front(whole, model, tmp_path):
    settings = replace(SETTINGS, objectives=(*SETTINGS.objectives, "memory (bytes)", "energy (J)"))
    front, _ = run(model, tmp_path, settings=settings)
    values = [objectives(outcome, settings.objectives) for outcome in front.best]
    for mine in values:
        assert not any(all(a <= b for a, b in zip(other, mine, strict=True)) for other in values if other is not mine)
    assert len(front.best) >= len(whole[0].best)


def test_what_loses_too_much_is_infeasible_whatever_it_gains(model, tmp_path):
    front, judged = run(model, tmp_path, settings=Settings(generations=2, population=8, offspring=4, epsilon=-1.0))
    assert judged
    assert front.best == ()
    assert choose(front.best) is None
    assert front.stopped[ACCURACY] == len(judged) + sum(o.reason == DOMINATED for o in front.outcomes)


def test_what_the_front_dominates_is_stopped_and_not_judged(whole):
    front, judged = whole
    dominated = [outcome for outcome in front.outcomes if outcome.reason == DOMINATED]
    assert dominated
    assert not {outcome.candidate.operator.key for outcome in dominated} & set(judged)
    for outcome in dominated:
        assert any(dominates(other, outcome, SETTINGS.objectives) for other in front.outcomes if other.feasible)


def test_a_complete_generation_is_repeated_as_it_was_whatever_the_time_is(model, tmp_path):
    fits_left, generations = 20, []

    def run_with(time_left):
        def cut(_generation, front):
            generations.append(summary(front))
            if time_left is not None:
                raise CutError

        with open_folder(tmp_path) as folder:
            context = context_for(model, sites_named(model, "r1"), folder)

            def fit_error(operator, weights):
                nonlocal fits_left
                fits_left -= 1
                return context.fit_error(operator, weights)

            limited = replace(context, fit_error=fit_error, time_left=time_left or (lambda: 1e9))
            return search(limited, replace(SETTINGS, fit_share=1.0), 3, cut)

    with pytest.raises(CutError):
        run_with(lambda: float(fits_left > 0))
    late = [key for key, _, reason, _ in generations[0] if reason == OUT_OF_TIME]
    assert late
    run_with(None)
    assert generations[1] == generations[0]


def test_a_candidate_that_is_judged_late_is_feasible_to_the_algorithm(whole):
    (best, *_) = whole[0].best
    individual = Individual(X=np.array([best.candidate], dtype=object))
    assign([individual], [replace(best, judgement=None)], SETTINGS)
    assert not individual.FEAS.item()
    assign([individual], [best], SETTINGS)
    assert individual.FEAS.item()


@pytest.mark.parametrize("breeder", [nsga2, random_search])
def test_everything_new_that_is_bred_is_asked_for(model, breeder):
    seeds = seed_candidates(sites_named(model, "r1"))[:6]
    algorithm = breeder(seeds, Settings(population=6, offspring=5), 1, Tally())
    asked = set()
    for _ in range(4):
        offspring = algorithm.ask()
        asked |= {individual.X[0].operator.text for individual in offspring}
        assign(list(offspring), [Outcome(i.X[0], 1, "fit").stopped("too bad") for i in offspring], SETTINGS)
        algorithm.tell(infills=offspring)
    assert asked == algorithm.eliminate_duplicates._seen


def test_wider_limits_have_more_seeds_and_the_original_has_none(model):
    sites = sites_named(model, "o1")
    few, usual = (seed_candidates(sites, limits) for limits in (Limits(nodes=2, edges=2), THESIS))
    assert [len(candidate.operator.nodes) for candidate in few[1:]] == [2] * (len(few) - 1)
    assert few[0].operator == usual[0].operator == canonicalise(sites[0].operator).graph
    assert {c.operator.text for c in few} < {c.operator.text for c in usual}


def test_alike_sites_get_the_same_operator_with_their_own_weights(model, tmp_path):
    front, _ = run(
        model, tmp_path, names=("r1", "r2"), settings=Settings(generations=1, population=8, offspring=8, epsilon=0.9)
    )
    outcome = choose(front.best)
    assert len(outcome.judgement.weights) == 2
    assert outcome.sites == 2
    one, two = outcome.judgement.weights
    assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    change_s = outcome.latency.median_s - outcome.original_latency.median_s
    assert objectives(outcome, SETTINGS.objectives)[0] == pytest.approx(2 * change_s)


def test_a_candidate_that_cannot_be_measured_is_stopped_with_the_reason(model, tmp_path):
    def broken(batch):
        original, *rest = counted_latencies(batch)
        return [original, *(Measurement((), CONDITIONS, "does not compile") for _ in rest)]

    front, judged = run(model, tmp_path, measure=broken)
    assert judged == []
    assert {o.reason for o in front.outcomes if o.level == "measured latency"} == {"not measured: does not compile"}


def test_no_evaluation_starts_when_the_time_is_over(model, tmp_path):
    with open_folder(tmp_path) as folder:
        context = context_for(model, sites_named(model, "r1"), folder, time_left=lambda: 0.0)
        front = search(context, SETTINGS, random_seed=0)
        assert len(folder.journal) == 2  # that a generation is complete, and the search
    assert front.best == ()
    assert {o.reason for o in front.outcomes if o.level == "fit"} == {"out of time"}


def test_the_original_in_another_order_is_timed(model, tmp_path):
    with open_folder(tmp_path) as folder:
        context = context_for(model, sites_named(model, "r1"), folder)
        layer = next(i for i, node in enumerate(context.original.nodes) if node.op == "cross_correlation")
        nodes = [*context.original.nodes[: layer + 1], Node("tile", (layer,), (("columns", 4),))]
        for node in context.original.nodes[layer + 1 :]:
            nodes.append(replace(node, args=tuple(a + (a >= layer) for a in node.args)))
        hinted = typed(tuple(nodes))
        assert hinted.output_shape == context.original.output_shape
        both = [Outcome(Candidate(operator, (), ("made up",)), 1) for operator in (hinted, context.original)]
        assert [one.reason is None for one in cascade._counted(both, context, SETTINGS)] == [True, False]


def test_a_gain_within_the_noise_is_not_chosen(model, tmp_path):
    def noisy(batch):
        original, *others = counted_latencies(batch)
        factors = [(0.2, 0.6, 1.0, 2.0, 4.0), *[(4.0, 2.0, 1.0, 0.6, 0.2)] * len(others)]
        return [
            Measurement(tuple(clean.median_s * factor for factor in own), CONDITIONS)
            for clean, own in zip((original, *others), factors, strict=True)
        ]

    front, _ = run(
        model, tmp_path, measure=noisy, settings=Settings(generations=1, population=8, offspring=8, epsilon=0.9)
    )
    assert front.best
    assert choose(front.best) is None


def test_without_a_task_only_the_same_function_is_feasible(model, tmp_path):
    sites = sites_named(model, "r1")
    judge = EquivalenceJudge(model, sites, normal(16, 3, 8, 8), np.random.default_rng(0), QUICK)
    own = judge(sites[0].operator, (sites[0].weights,))
    assert own.drop == 0
    with open_folder(tmp_path) as folder:
        context = context_for(model, sites, folder, judge=judge)
        front = search(context, Settings(generations=1, epsilon=TOLERANCE), random_seed=0)
    judged = [o for o in front.outcomes if o.judgement is not None and not o.is_original]
    assert judged
    assert all(o.feasible == (o.judgement.drop < TOLERANCE) for o in judged)
    assert any(not o.feasible for o in judged)


def test_measuring_leaves_time_for_judging(model, tmp_path, monkeypatch):
    monkeypatch.setattr(cascade, "TOGETHER", 1)
    left_s = 10.0

    def measure(batch):
        nonlocal left_s
        left_s -= 1.0
        return counted_latencies(batch)

    settings = replace(SETTINGS, generations=1, measurements=24, measure_share=0.6)
    with open_folder(tmp_path) as folder:
        sites = sites_named(model, "r1")
        context = context_for(model, sites, folder, measure=measure, time_left=lambda: left_s)
        front = search(context, settings, random_seed=0)
    measured = [outcome for outcome in front.outcomes if outcome.latency is not None]
    assert len(measured) == 6
    assert any(outcome.judgement for outcome in measured)
    assert any(o.level == "measured latency" and o.reason == OUT_OF_TIME for o in front.outcomes)


def test_what_could_not_be_timed_again_is_not_chosen(whole):
    lost = [replace(outcome, latency=Measurement((), CONDITIONS, "lost")) for outcome in whole[0].best]
    assert lost
    assert choose(lost) is None
