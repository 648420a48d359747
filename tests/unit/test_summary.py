"""What the result says of sites and searches, for strategies that choose an operator for each site by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from example_result import CONDITIONS
from example_search import residual_model, sites_named

from gos_adapt.model.model import Replacement
from gos_adapt.model.sites import find_sites
from gos_adapt.profiling.profile import KernelLatency, Profile, attribute
from gos_adapt.profiling.select import Selection
from gos_adapt.quantities import Measurement
from gos_adapt.search.candidate import Judgement, Outcome
from gos_adapt.search.cascade import OUT_OF_TIME
from gos_adapt.search.search import Front, seed_candidates
from gos_adapt.strategies.setting import Adapted, Step
from gos_adapt.summary import count_macs, summarise_profile, summarise_searches, summarise_sites
from gos_adapt.task.metrics import METRICS


def timed(*samples_us: float) -> Measurement:
    return Measurement(tuple(sample / 1e6 for sample in samples_us), CONDITIONS)


@pytest.fixture(scope="module")
def adapted() -> Adapted:
    """Two alike branches that got different operators, tuned and timed again; every other layer was retrained."""
    model = residual_model()
    sites, group = find_sites(model), sites_named(model, "o1", "o2")
    _, *others = seed_candidates(group)
    outcomes = tuple(
        Outcome(
            candidate,
            2,
            "accuracy",
            fit_error=0.1,
            latency=timed(2, 2, 2),
            original_latency=timed(4, 4, 4),
            judgement=Judgement(None, 0.1 * k, candidate.weights),
        )
        for k, candidate in enumerate(others[:3], start=1)
    )
    front = Front(outcomes, outcomes, {"counted cost": 7}, {"counted cost": 0.1, "fit": 2.0})
    chosen = {site.name: replace(outcomes[k], latency=timed(1, 1, 1)) for k, site in enumerate(group)}
    names = tuple(site.name for site in group)
    step = Step(group, Selection(names, dict.fromkeys(names, "selected"), 2.0), front, chosen)
    replacements = tuple(
        Replacement(site.name, o.candidate.operator, o.candidate.weights[k], o.candidate.lineage)
        for k, (site, o) in enumerate(zip(group, chosen.values(), strict=True))
    )
    covered = {name for site in group for name in site.nodes}
    retrained = tuple(
        Replacement(site.name, site.operator, site.weights)
        for site in sites
        if site.weights and covered.isdisjoint(site.nodes)
    )
    reasons = {site.name: "not selected" for site in sites}
    return Adapted(model, (*replacements, *retrained), (step,), sites, Selection((), reasons, 1.0))


@pytest.fixture(scope="module")
def profile(adapted: Adapted) -> Profile:
    """Each node a kernel."""
    return profile_of(adapted, timed(1, 2, 3))


def profile_of(adapted: Adapted, latency: Measurement) -> Profile:
    nodes = adapted.model.proto.graph.node
    kernels = [KernelLatency(f"k{i}", (node.output[0],), "", latency) for i, node in enumerate(nodes)]
    return attribute(timed(9, 9, 9), kernels, adapted.sites)


def test_each_site_has_the_operator_that_was_chosen_for_it(adapted: Adapted, profile: Profile) -> None:
    rows = {site.name: site for site in summarise_sites(adapted, profile, profile)}
    chosen = adapted.steps[0].chosen
    for name, outcome in chosen.items():
        replacement = rows[name].replacement
        assert replacement
        assert replacement.key == outcome.candidate.operator.key
        assert rows[name].lineage == outcome.candidate.lineage
        assert rows[name].reason == "selected; replaced"
    assert len({outcome.candidate.operator.key for outcome in chosen.values()}) == 2


def test_layers_that_were_only_retrained_are_named_and_not_listed_as_replaced(
    adapted: Adapted, profile: Profile
) -> None:
    rows = summarise_sites(adapted, profile, profile)
    retrained = [site for site in rows if site.retrained]
    assert {site.name for site in retrained} == {r.site for r in adapted.replacements if r.retrained}
    assert retrained
    assert all(site.replacement is None and site.lineage == () for site in retrained)
    assert not any(site.retrained for site in rows if site.replacement)


def test_what_is_inside_a_retrained_branch_was_retrained_and_changes_no_count(
    adapted: Adapted, profile: Profile
) -> None:
    branch = next(site for site in adapted.sites if site.kind == "branch")
    whole = replace(adapted, replacements=(Replacement(branch.name, branch.operator, branch.weights),), steps=())
    retrained = {site.name for site in summarise_sites(whole, profile, profile) if site.retrained}
    assert retrained == {site.name for site in adapted.sites if set(site.nodes) <= set(branch.nodes)}
    assert len(retrained) > 1
    change = count_macs(whole)
    assert change.after == change.before


def test_only_replacements_change_the_multiply_accumulates(adapted: Adapted) -> None:
    change = count_macs(adapted)
    without = replace(adapted, replacements=tuple(r for r in adapted.replacements if not r.retrained))
    assert change == count_macs(without)
    assert change.after.value < change.before.value


def test_the_multiply_accumulates_are_those_of_the_outermost_sites(adapted: Adapted) -> None:
    outermost = sites_named(adapted.model, "r0", "o1", "o2", "f", "y")
    change = count_macs(adapted)
    assert change.before.value == sum(site.operator.macs for site in outermost)
    replaced = {replacement.site: replacement.operator for replacement in adapted.replacements}
    after = [replaced.get(site.name, site.operator) for site in outermost]
    assert change.after.value == sum(operator.macs for operator in after)
    attentions = tuple(replace(s, kind="attention") if s.kind == "branch" else s for s in adapted.sites)
    assert count_macs(replace(adapted, sites=attentions)) == change


def test_profile_and_report_have_one_sum_of_kernels_and_one_gap(adapted: Adapted) -> None:
    kernels = [KernelLatency(f"k{i}", (), "", timed(*us)) for i, us in enumerate(((1, 2, 9), (9, 2, 1)))]
    profile = attribute(timed(12, 12, 12), kernels, adapted.sites)
    summary = summarise_profile(profile)
    assert summary.kernels
    assert summary.kernels.value == pytest.approx(10e-6)  # the sum of medians would be 4 µs
    assert summary.gap == profile.gap == pytest.approx(10 / 12 - 1)


def test_a_kernel_that_was_not_measured_leaves_no_sum(adapted: Adapted) -> None:
    broken = KernelLatency("k1", (), "", Measurement((), CONDITIONS, "the device stopped answering"))
    profile = attribute(timed(9), [KernelLatency("k0", (), "", timed(5)), broken], adapted.sites)
    summary = summarise_profile(profile)
    assert (summary.kernels, summary.gap, summary.kernel_count.value) == (None, None, 2)
    assert profile.gap is None


def test_kernels_and_bytes_of_a_site_are_counted(adapted: Adapted, profile: Profile) -> None:
    for row, site in zip(summarise_sites(adapted, profile, profile), adapted.sites, strict=True):
        assert row.original.kernels.value == len(site.nodes)
        assert row.original.traffic.value == site.operator.traffic_bytes


def test_originals_and_replacements_have_the_latencies_of_the_profiles_given(adapted: Adapted) -> None:
    before, after = profile_of(adapted, timed(5)), profile_of(adapted, timed(7))
    for row in summarise_sites(adapted, before, after):
        assert row.original.latency == before.sites[row.name]
        assert row.replacement is None or set(row.replacement.latency.samples_s) == {7e-6}


def test_a_candidate_that_was_timed_again_is_still_the_chosen_one(adapted: Adapted) -> None:
    (group,) = summarise_searches(adapted.steps, None)
    wanted = {outcome.candidate.operator.key for outcome in adapted.steps[0].chosen.values()}
    assert {candidate.key for candidate in group.candidates if candidate.chosen} == wanted
    assert [candidate.on_front for candidate in group.candidates] == [True] * 3
    assert [candidate.loss and candidate.loss.value for candidate in group.candidates] == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("metric", "units"),
    [("top-1", ("fraction", "fraction")), ("mean-absolute-error", ("units of the target", "1"))],
)
def test_the_loss_of_an_error_is_relative(adapted: Adapted, metric: str, units: tuple[str, str]) -> None:
    (step,) = adapted.steps
    scored = tuple(replace(o, judgement=Judgement(0.5, 0.1, o.candidate.weights)) for o in step.front.outcomes)
    (group,) = summarise_searches((replace(step, front=replace(step.front, outcomes=scored)),), METRICS[metric])
    found = {(c.accuracy and c.accuracy.unit, c.loss and c.loss.unit) for c in group.candidates[: len(scored)]}
    assert found == {units}


def test_a_level_that_stopped_nobody_keeps_its_seconds(adapted: Adapted) -> None:
    (group,) = summarise_searches(adapted.steps, None)
    assert group.outcomes == {"counted cost": 7, "fit": 0, "feasible": 3}
    assert group.levels_s == {"counted cost": 0.1, "fit": 2.0}


def test_what_came_too_late_was_not_stopped_by_a_level(adapted: Adapted) -> None:
    step = adapted.steps[0]
    late = replace(step.front.outcomes[0], level="fit", judgement=None, latency=None).stopped(OUT_OF_TIME)
    front = replace(step.front, outcomes=(*step.front.outcomes, late), stopped={"counted cost": 7, "fit": 3})
    (group,) = summarise_searches((replace(step, front=front),), None)
    assert group.outcomes == {"counted cost": 7, "fit": 2, "out of time": 1, "feasible": 3}


def test_a_kind_of_site_that_was_passed_over_says_why(adapted: Adapted, profile: Profile) -> None:
    step = replace(adapted.steps[0], chosen={})
    unchosen = replace(adapted, replacements=(), steps=(step,))
    reasons = {site.name: site.reason for site in summarise_sites(unchosen, profile, profile)}
    assert reasons["o1"] == "selected; kept, because what was found here is not among the replacements chosen together"
    slow = tuple(replace(o, latency=timed(4, 4, 4)) for o in step.front.outcomes)
    step = replace(step, front=replace(step.front, outcomes=slow, best=slow))
    rows = summarise_sites(replace(unchosen, steps=(step,)), profile, profile)
    reasons = {site.name: site.reason for site in rows}
    assert reasons["o1"] == "selected; kept, because no feasible candidate was clearly faster"


def test_what_was_chosen_is_listed_even_if_the_search_did_not_reach_it(adapted: Adapted) -> None:
    (step,) = adapted.steps
    outcome = next(iter(step.chosen.values()))
    front = replace(step.front, outcomes=step.front.outcomes[1:], best=step.front.best[1:])
    (search,) = summarise_searches((replace(step, front=front),), None)
    listed = [candidate for candidate in search.candidates if candidate.key == outcome.candidate.operator.key]
    assert [candidate.chosen for candidate in listed] == [True]
