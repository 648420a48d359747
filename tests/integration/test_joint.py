"""The global strategy on this machine: what it chooses, what it delivers, and that it goes on where it was."""

import math
import shutil
from dataclasses import replace
from itertools import pairwise

import example_strategies
import numpy as np
import pytest
from example_models import in_onnx_runtime
from example_search import residual_model, sites_named
from example_strategies import INPUTS

from device_targets import DEVICES
from device_targets.session import Session
from gos_adapt.model.model import Replacement
from gos_adapt.model.sites import find_sites
from gos_adapt.model.splice import splice
from gos_adapt.operators.graph import OperatorGraph
from gos_adapt.search.candidate import NO_NUMBER, Outcome
from gos_adapt.search.cascade import Settings
from gos_adapt.search.search import seed_candidates
from gos_adapt.strategies import exchange, joint, table
from gos_adapt.strategies.joint import Joint
from gos_adapt.strategies.setting import Request
from gos_adapt.strategies.tuned_latency import timed_tuned
from gos_adapt.workbench import Workbench


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Little of everything: the tests are about what is done, not how well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint, "PASSES", 8)
        patch.setattr(joint, "GENERATIONS", 1)
        patch.setattr(joint, "MOST_SETS", 2)
        patch.setattr(table, "KEPT", 2)
        patch.setattr(joint, "LADDER", (1.1, 1.5))
        patch.setattr(joint, "LONG", replace(joint.DEFAULT, steps=joint.DEFAULT.steps + 1))
        yield


@pytest.fixture(scope="module")
def workbench():
    with Session(DEVICES["host"]()) as session, Workbench(session) as bench:
        yield bench


@pytest.fixture(scope="module")
def model():
    return residual_model(32, INPUTS)


def run(model, workbench, path, *, epsilon=0.2, max_sites=None, **options):
    """Without a budget: what is found then does not depend on how fast this machine is."""
    kept = []
    with opened(model, workbench, path, kept, epsilon=epsilon, max_sites=max_sites, **options) as strategy:
        return strategy.run(), kept, len(strategy.folder.journal)


def opened(model, workbench, path, kept, *, seconds=math.inf, **options):
    """The strategy in a folder, with so much time left; what it delivers is put in `kept`."""
    request = Request(seed=0, settings=Settings(population=8, offspring=8, measurements=8), **options)
    return example_strategies.opened(Joint, model, workbench, path, kept, request, seconds=seconds)


def without(finished, path, *prefixes):
    """Copy a finished run to `path`, forgetting what the prefixes of keys say; return the copy's journal."""
    shutil.copytree(finished[0], path / "run")
    journal = path / "run" / "journal.jsonl"
    records = journal.read_text().splitlines(keepends=True)
    kept = [record for record in records if not any(f'["{prefix}' in record for prefix in prefixes)]
    assert len(kept) < len(records) or not prefixes
    journal.write_text("".join(kept))
    return journal


def table_of(strategy):
    """Make the table of a run that was finished, each time anew."""
    (profile,) = strategy.profiles("original", strategy.model)
    steps = strategy._search_all(profile)
    return lambda: table.Table(strategy, steps, profile)


@pytest.fixture(scope="module")
def faster(model, workbench, tmp_path_factory):
    path = tmp_path_factory.mktemp("joint") / "run"
    return path, *run(model, workbench, path, speed_up=1.1, train_all=True)


def test_what_is_replaced_together_makes_the_delivered_model(faster, model):
    _, adapted, kept, _ = faster
    replaced = [r for r in adapted.replacements if not r.retrained]
    assert replaced
    assert kept[-1] == adapted.replacements
    rebuilt = splice(model, adapted.replacements)
    for one, other in zip(
        in_onnx_runtime(rebuilt.proto, INPUTS[:4]), in_onnx_runtime(adapted.model.proto, INPUTS[:4]), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_something_can_be_delivered_before_the_last_training(faster, model, workbench, tmp_path):
    without(faster, tmp_path)
    kept = []
    with opened(model, workbench, tmp_path / "run", kept, epsilon=0.2, max_sites=None, train_all=True) as strategy:
        rows = table_of(strategy)().rows
        sets = [(rows[0],), (next(row for row in rows if row.site is not rows[0].site),)]
        plan = joint._Race(2, 1e9, 0.0)
        _, best = strategy._race(sets, "raced", plan, math.inf, 1, deliver=True)
        assert {r.site for r in kept[0] if not r.retrained} in [{row.site.name for row in one} for one in sets]
        assert len(kept) == 2
        assert {r.site for r in kept[1]} == {r.site for r in best.replacements}
        strategy._race(sets, "raced", plan, math.inf, 1)
        assert len(kept) == 2


@pytest.mark.parametrize(("behind", "delivered"), [(1.0, 1), (math.inf, 2)])
def test_what_is_far_behind_after_long_fits_of_all_layers_has_no_heat(
    faster, model, workbench, tmp_path, monkeypatch, behind, delivered
):
    without(faster, tmp_path)
    monkeypatch.setattr(joint, "BEHIND", behind)
    kept = []
    with opened(model, workbench, tmp_path / "run", kept, epsilon=0.2, max_sites=None, train_all=True) as strategy:
        rows = table_of(strategy)().rows
        long = joint._Race(2, 1e9, 2 * joint.DEFAULT.macs)
        strategy._race([(row,) for row in rows[:2]], "raced", long, math.inf, 1, deliver=True)
        assert len(kept) == delivered


def test_every_replaced_site_is_told_with_the_candidate_that_went_there(faster):
    _, adapted, _, _ = faster
    told = {name: outcome for step in adapted.steps for name, outcome in step.chosen.items()}
    replaced = {r.site: r for r in adapted.replacements if not r.retrained}
    assert told.keys() == replaced.keys()
    assert all(told[name].candidate.operator.key == r.operator.key for name, r in replaced.items())


def test_with_all_layers_trained_every_layer_is_a_replacement_or_inside_one(faster):
    _, adapted, _, _ = faster
    covered = {
        name for site in adapted.sites if site.name in {r.site for r in adapted.replacements} for name in site.nodes
    }
    layers = [site for site in adapted.sites if site.weights and site.kind != "branch"]
    assert all(covered.issuperset(site.nodes) for site in layers)


@pytest.mark.parametrize("seconds", [math.inf, 1.0])
def test_the_same_run_again_repeats_nothing_and_ends_the_same(faster, model, workbench, seconds):
    path, adapted, _, records = faster
    again, _, records_again = run(model, workbench, path, speed_up=1.1, train_all=True, seconds=seconds)
    assert records_again == records
    for one, other in zip(adapted.replacements, again.replacements, strict=True):
        assert one.site == other.site
        for mine, theirs in zip(one.weights, other.weights, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_without_a_latency_asked_for_the_accuracy_decides(model, workbench, tmp_path):
    adapted, kept, _ = run(model, workbench, tmp_path / "run", epsilon=math.inf)
    assert {r.site for r in adapted.replacements}
    assert kept[-1] == adapted.replacements
    strict, kept, _ = run(model, workbench, tmp_path / "run", epsilon=0.0)  # what was searched and timed is known
    assert (strict.replacements, kept) == ((), [])
    assert strict.model is model
    assert strict.notes


def test_what_misses_a_rung_of_the_ladder_may_do_for_one_below(faster, model, workbench, tmp_path, monkeypatch):
    without(faster, tmp_path)
    found, lower, upper = table.Table.sets, 1.05, 1.1
    monkeypatch.setattr(joint, "LADDER", (lower, upper))
    monkeypatch.setattr(table.Table, "sets", lambda *args, **options: (found(*args, **options)[0], ("missed",)))
    with opened(model, workbench, tmp_path / "run", [], epsilon=math.inf, max_sites=None) as strategy:
        between_s = strategy.profiles("original", model)[0].whole.median_s / math.sqrt(lower * upper)
        monkeypatch.setattr(table.Table, "reaches", lambda _table, _rows, goal_s: goal_s >= between_s)
        assert strategy.run().replacements
        assert [rung for rung in (lower, upper) if f"trial-{rung}" in strategy.folder.journal] == [upper]


def test_no_more_sites_are_replaced_than_allowed(faster, model, workbench, tmp_path):
    searched, *_ = faster
    shutil.copytree(searched, tmp_path / "run")  # what was searched and timed is known
    adapted, _, _ = run(model, workbench, tmp_path / "run", speed_up=50.0, max_sites=1)
    assert len(adapted.replacements) == 1
    assert "No set of replacements that was timed reaches the latency" in adapted.notes[0]


def test_no_set_is_timed_when_the_time_is_over(faster, model, workbench, tmp_path):
    journal = without(faster, tmp_path, "whole:", "sets:")
    with opened(model, workbench, tmp_path / "run", [], epsilon=0.2, max_sites=None, speed_up=1.1, seconds=0.0) as late:
        adapted = late.run()
    assert not adapted.replacements
    assert "No set of replacements that was timed reaches the latency" in adapted.notes[0]
    assert '"whole:' not in journal.read_text()


def test_a_run_killed_before_its_sets_were_timed_ends_as_the_undisturbed_one(faster, model, workbench, tmp_path):
    _, adapted, *_ = faster
    without(faster, tmp_path, "sets:")  # what was timed is known, not how much of it was needed
    again, *_ = run(model, workbench, tmp_path / "run", speed_up=1.1, train_all=True)
    assert [r.site for r in again.replacements] == [r.site for r in adapted.replacements]


def test_what_others_have_timed_since_changes_no_choice_of_a_run_that_goes_on(faster, model, workbench, tmp_path):
    without(faster, tmp_path)
    with opened(model, workbench, tmp_path / "run", [], epsilon=0.2, max_sites=None) as strategy:
        sets = table_of(strategy)
        goal_s = strategy.profiles("original", model)[0].whole.median_s / 1.1
        few, missed = sets().sets(goal_s, 3, 0.0)
        assert (few, bool(missed)) == ([], True)
        assert sets().sets(goal_s, 2, math.inf)[0]
        assert sets().sets(goal_s, 3, math.inf)[0] == []


def test_patience_waits_for_one_set_that_reaches_the_latency(faster, model, workbench, tmp_path):
    without(faster, tmp_path)
    with opened(model, workbench, tmp_path / "run", [], epsilon=0.2, max_sites=None) as strategy:
        goal_s = strategy.profiles("original", model)[0].whole.median_s / 1.1
        reached, missed = table_of(strategy)().sets(goal_s, 3, 0.0, patient=True)
        assert (len(reached), missed) == (1, ())


def test_as_many_sets_race_as_can_have_enough_steps_and_a_killed_run_keeps_their_number(model, workbench, tmp_path):
    least_s = 2 * joint.HEAT_STEPS * 0.1 / joint.HEATS_SHARE
    with opened(model, workbench, tmp_path / "run", [], epsilon=0.1, max_sites=None) as strategy:
        strategy.folder.journal.put("step", 0.1)
        short = strategy._planned("short", 0.99 * least_s)
        assert (short.runners, short.contenders) == (1, 2)
        hasty = strategy._planned("hasty", 1e-3)
        assert (hasty.contenders, hasty.fitting) == (1, joint.DEFAULT)
        long = strategy._planned("long", 1.01 * least_s)
        assert long.runners == 2
    with opened(model, workbench, tmp_path / "run", [], epsilon=0.1, max_sites=None) as strategy:
        assert strategy._planned("long", 1.0) == long


@pytest.mark.parametrize("runners", range(2, 9))
def test_heats_share_the_time_of_a_race_and_double(runners):
    heats, left = [], runners
    while left > 1:
        heats.append(joint._heat_share(runners, len(heats)))
        left = (left + 1) // 2
    assert sum(heats) == pytest.approx(joint.HEATS_SHARE)
    assert all(later == pytest.approx(2 * sooner) for sooner, later in pairwise(heats))


def test_exchanges_lower_the_joint_loss_and_are_repeated_as_they_were(faster, model, workbench, tmp_path, monkeypatch):
    without(faster, tmp_path)
    monkeypatch.setattr(table.Table, "reaches", lambda *_: True)
    monkeypatch.setattr(exchange, "SLACK", 10.0)
    with opened(model, workbench, tmp_path / "run", [], epsilon=0.2, max_sites=None, train_all=True) as strategy:
        made = table_of(strategy)()
        by_family = [[row for row in made.rows if row.family == family] for family in {r.family for r in made.rows}]
        alike = next(rows for rows in by_family if len(rows) > 1)
        found = {strategy._exchanged((row,), made, 1.0, math.inf) for row in alike}
        losses = {row: strategy.folder.journal.get(f"joint:{strategy._set_key((row,))}") for row in alike}
        assert all(losses[best] == min(losses.values()) for (best,) in found)
        known = len(strategy.folder.journal)
        assert {strategy._exchanged((row,), made, 1.0, 0.0) for row in alike} == found
        assert len(strategy.folder.journal) == known


def test_how_much_two_sets_share():
    assert table.shared([1, 2, 3, 4], []) == 0
    assert table.shared([1, 2, 3, 4], [(5,), (4,), (1, 2, 9)]) == 0.5
    assert table.shared([], []) == 1


def test_a_training_step_is_timed_once(model, workbench, tmp_path):
    with opened(model, workbench, tmp_path / "run", [], epsilon=0.1, max_sites=None) as strategy:
        assert strategy.step_s > 0
    (tmp_path / "other").mkdir()
    with opened(model, workbench, tmp_path / "other", [], epsilon=0.1, max_sites=None) as strategy:
        strategy.folder.journal.put("step", 123.0)
        assert strategy.step_s == 123.0


def test_relatives_are_timed_whatever_the_search_makes_of_them(faster):
    _, adapted, _, _ = faster
    branches = [step for step in adapted.steps if step.sites[0].kind == "branch"]
    assert branches
    for step in branches:
        assert {"shortcut", "narrowed"} <= {outcome.candidate.family for outcome in step.relatives}
        assert all(outcome.latency.ok and outcome.original_latency.ok for outcome in step.relatives)


def test_relatives_that_only_the_search_had_time_for_stay_out_when_a_run_goes_on(faster, model, workbench, tmp_path):
    without(faster, tmp_path, "relatives")
    with opened(model, workbench, tmp_path / "run", [], epsilon=0.2, max_sites=None) as strategy:
        (profile,) = strategy.profiles("original", model)
        kinds = strategy.kinds(profile)
        seeds = [[s.operator.key for s in seed_candidates(group) if s.family] for group in kinds]
        strategy.folder.journal.put("relatives", [keys[:2] for keys in seeds])
        found = strategy._relatives(kinds, profile)
        assert any(len(keys) > 2 for keys in seeds)
        assert [[o.candidate.operator.key for o in outcomes] for outcomes in found] == [keys[:2] for keys in seeds]


def test_what_computes_no_number_right_after_fitting_is_not_in_the_table(faster, model, workbench, tmp_path):
    without(faster, tmp_path)
    with opened(model, workbench, tmp_path / "run", [], epsilon=0.2, max_sites=None) as strategy:
        rows = table_of(strategy)().rows
        key = f"loss:{strategy.model_key}:{rows[0].site.name}:{rows[0].outcome.candidate.operator.key}"
        strategy.folder.journal.put(key, NO_NUMBER)
        assert [(r.site.name, r.outcome.candidate.operator.key) for r in table_of(strategy)().rows] == [
            (r.site.name, r.outcome.candidate.operator.key) for r in rows[1:]
        ]
        assert strategy.drop(replace(strategy.original_score, value=math.nan)) == math.inf


def test_a_set_that_does_not_run_or_is_slower_is_not_chosen(faster, model, workbench, tmp_path, monkeypatch):
    without(faster, tmp_path, "sets:")
    with opened(model, workbench, tmp_path / "run", [], epsilon=0.2, max_sites=None) as strategy:
        goal_s = strategy.profiles("original", model)[0].whole.median_s / 1.1
        for ratio in (None, 1.5):
            monkeypatch.setattr(table.Table, "_ratio", lambda *_, ratio=ratio: ratio)
            made = table_of(strategy)()
            assert not made.reaches(made.rows[:1], goal_s)
            sets, missed = made.sets(goal_s, 1, math.inf)
            assert (sets, bool(missed)) == ([], True)


def test_only_sites_of_the_original_are_eligible_as_they_were(model, workbench, tmp_path):
    (site,) = sites_named(model, "r1")
    bare = OperatorGraph(site.operator.nodes[:-1])
    spliced = splice(model, [Replacement("r1", bare, site.weights)])
    own = {one.name: one.nodes for one in find_sites(model)}
    changed = {one.name for one in find_sites(spliced) if own.get(one.name) != one.nodes}
    assert "o1" in changed
    with opened(model, workbench, tmp_path / "run", [], epsilon=0.2, max_sites=None) as strategy:
        assert {one.name for one in strategy.eligible(spliced)} == own.keys() - changed


def test_operators_are_timed_on_tuned_schedules_as_far_as_the_time_goes(model, workbench, tmp_path):
    group = sites_named(model, "o1", "o2")
    outcomes = [Outcome(seed, 2) for seed in seed_candidates(group) if seed.family][:2]
    with opened(model, workbench, tmp_path / "run", [], epsilon=0.1, max_sites=None) as strategy:
        assert timed_tuned(strategy, model, [(group, ())], strategy.time_left) == [[]]
        assert len(strategy.folder.journal) == 0
        (timed,) = timed_tuned(strategy, model, [(group, outcomes)], strategy.time_left)
        assert [o.candidate for o in timed] == [o.candidate for o in outcomes]
        assert all(outcome.latency.ok and outcome.original_latency.ok for outcome in timed)
        (again,) = timed_tuned(strategy, model, [(group, outcomes)], lambda: 0.0)
        assert [o.latency for o in again] == [o.latency for o in timed]  # as it was found before
        (late,) = timed_tuned(strategy, model, [(group, outcomes[:1])], lambda: 0.0)
        assert late == outcomes[:1]
