"""Gather what a run found into plain data for the result file and the report."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from gos_adapt.cost.counted import counted_cost
from gos_adapt.model.sites import overlaps
from gos_adapt.operators.equation import equation
from gos_adapt.profiling.profile import KernelLatency, Profile, kernels_of, together
from gos_adapt.quantities import Count
from gos_adapt.result import (
    CandidateResult,
    Change,
    Formula,
    GroupSearch,
    Measured,
    OperatorSummary,
    ProfileSummary,
    SiteResult,
)
from gos_adapt.search.cascade import LEVEL_NAMES, OUT_OF_TIME
from gos_adapt.search.objectives.latency import latency_change_s
from gos_adapt.search.search import choose

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from gos_adapt.model.model import Model, Site
    from gos_adapt.operators.graph import OperatorGraph
    from gos_adapt.search.candidate import Outcome
    from gos_adapt.strategies.setting import Adapted, Step
    from gos_adapt.task import Metric

FEASIBLE, NOT_JUDGED = "feasible", "not judged"


def summarise_profile(profile: Profile) -> ProfileSummary:
    """Give the whole and the sum of the kernels."""
    kernels = Measured(profile.kernel_sum.median_s, "s") if profile.kernel_sum.ok else None
    return ProfileSummary(profile.whole, kernels, Count(len(profile.kernels), "kernel"))


def summarise_sites(adapted: Adapted, before: Profile, after: Profile) -> tuple[SiteResult, ...]:
    """Say for every site of the original what became of it.

    Args:
        adapted: What the loop did.
        before: Profile of the original, taken in turns with the next.
        after: Profile of the adapted model.
    """
    replaced = {replacement.site: replacement for replacement in adapted.replacements if not replacement.retrained}
    retrained = [replacement.site for replacement in adapted.replacements if replacement.retrained]
    reasons = dict(adapted.selection.reasons)
    for step in adapted.steps:
        reasons |= {site.name: _fate(site, step) for site in step.sites}
    inside = {
        site.name: next((r for r in replaced if r != site.name and _covers(r, site, adapted.sites)), None)
        for site in adapted.sites
    }
    return tuple(
        SiteResult(
            name=site.name,
            kind=site.kind,
            overlaps=tuple(other.name for other in adapted.sites if other is not site and overlaps(site, other)),
            searched=any(site.name in step.selection.group for step in adapted.steps),
            reason=reasons.get(site.name)
            or (f"replaced with {inside[site.name]}" if inside[site.name] else "its surroundings were replaced"),
            original=_operator(site.operator, kernels_of(site, before), before),
            replacement=_operator(replaced[site.name].operator, _kernels_after(site, after), after)
            if site.name in replaced
            else None,
            retrained=any(_covers(r, site, adapted.sites) for r in retrained),
            lineage=replaced[site.name].lineage if site.name in replaced else (),
        )
        for site in adapted.sites
    )


def summarise_searches(steps: tuple[Step, ...], metric: Metric | None) -> tuple[GroupSearch, ...]:
    """Say for every search what it looked at and where it ended."""
    return tuple(_search(step, metric_unit(metric) if metric else "1") for step in steps)


def metric_unit(metric: Metric) -> str:
    """Return the unit of a metric's value in results: top-k and overlaps are fractions of 1."""
    return "fraction" if metric.higher_is_better else metric.unit


def count_parameters(before: Model, after: Model) -> Change:
    """Count stored floating-point numbers."""
    return Change(Count(_parameters(before.proto), "parameter"), Count(_parameters(after.proto), "parameter"))


def count_macs(adapted: Adapted) -> Change:
    """Count the sites' multiply-accumulates for one sample, what they share once; what no site covers is left out."""
    counted: list[Site] = []
    for site in sorted(adapted.sites, key=lambda site: -len(site.nodes)):
        if not any(overlaps(site, other) for other in counted):
            counted.append(site)
    before = sum(site.operator.macs for site in counted)
    originals = {site.name: site.operator.macs for site in adapted.sites}
    replaced = [replacement for replacement in adapted.replacements if not replacement.retrained]
    change = sum(replacement.operator.macs - originals[replacement.site] for replacement in replaced)
    return Change(Count(before, "mac"), Count(before + change, "mac"))


def _fate(site: Site, step: Step) -> str:
    reason = step.selection.reasons[site.name]
    if site.name in step.chosen:
        return f"{reason}; replaced"
    if step.chosen:
        return f"{reason}; kept, because the others of its kind were enough"
    if not any(outcome.judgement for outcome in step.front.outcomes if not outcome.is_original):
        return f"{reason}; kept, because no candidate was promising enough, or in time, to be judged"
    if not step.front.best:
        return f"{reason}; kept, because no candidate met the accuracy constraint"
    if choose(step.front.best) is not None:
        return f"{reason}; kept, because what was found here is not among the replacements chosen together"
    return f"{reason}; kept, because no feasible candidate was clearly faster"


def _covers(replaced: str, site: Site, sites: tuple[Site, ...]) -> bool:
    return any(other.name == replaced and set(site.nodes) <= set(other.nodes) for other in sites)


def _kernels_after(site: Site, after: Profile) -> list[KernelLatency]:
    """The kernels of a replacement; splicing names its tensors after the site."""
    return [
        kernel
        for kernel in after.kernels
        if any(name == site.output or name.startswith(f"{site.name}#") for name in kernel.tensors)
    ]


def _operator(operator: OperatorGraph, kernels: Sequence[KernelLatency], profile: Profile) -> OperatorSummary:
    form, cost = equation(operator), counted_cost(operator)
    return OperatorSummary(
        operator.key,
        operator.text,
        Formula(form.text, form.latex, form.mathml),
        cost.macs,
        cost.parameters,
        cost.traffic,
        Count(len(kernels), "kernel"),
        together([kernel.latency for kernel in kernels], profile.whole),
    )


def _search(step: Step, unit: str) -> GroupSearch:
    outcomes = {name: step.front.stopped.get(name, 0) for name in LEVEL_NAMES}
    bred = [outcome for outcome in step.front.outcomes if not outcome.is_original]
    late = Counter(outcome.level for outcome in bred if outcome.reason == OUT_OF_TIME)
    outcomes = {name: count - late[name] for name, count in outcomes.items()} | {OUT_OF_TIME: late.total()}
    outcomes[NOT_JUDGED] = sum(outcome.waiting for outcome in bred)
    outcomes[FEASIBLE] = sum(outcome.feasible for outcome in bred)
    shown = [outcome for outcome in bred if outcome.fit_error is not None or outcome.latency is not None]
    keys = {outcome.candidate.operator.key for outcome in shown}
    shown += {
        o.candidate.operator.key: o for o in step.chosen.values() if o.candidate.operator.key not in keys
    }.values()
    return GroupSearch(
        name=f"{step.sites[0].kind}: {', '.join(site.name for site in step.sites)}",
        sites=tuple(site.name for site in step.sites),
        outcomes={name: count for name, count in outcomes.items() if count or name in step.front.seconds},
        levels_s=dict(step.front.seconds),
        candidates=tuple(_candidate(outcome, step, unit) for outcome in shown),
    )


def _candidate(outcome: Outcome, step: Step, unit: str) -> CandidateResult:
    operator, judgement = outcome.candidate.operator, outcome.judgement
    chosen = {outcome.candidate.operator.key for outcome in step.chosen.values()}  # a strategy may have timed it again
    timed = outcome.latency is not None and outcome.latency.ok
    timed = timed and outcome.original_latency is not None and outcome.original_latency.ok
    change = Measured(latency_change_s(outcome) / len(step.sites), "s") if timed else None
    score = None if judgement is None or judgement.score is None else Measured(judgement.score, unit)
    absolute = score is not None and unit == "fraction"  # `Metric.drop` of an error is relative
    loss = None if judgement is None else Measured(judgement.drop, unit if absolute else "1")
    return CandidateResult(
        key=operator.key,
        text=operator.text,
        latency_change=change,
        parameters=Count(operator.parameters, "parameter"),
        macs=Count(operator.macs, "mac"),
        accuracy=score,
        loss=loss,
        fit_error=None if outcome.fit_error is None else Measured(outcome.fit_error, "1"),
        outcome=FEASIBLE if outcome.feasible else NOT_JUDGED if outcome.waiting else outcome.level,
        feasible=outcome.feasible,
        on_front=outcome in step.front.best,
        chosen=operator.key in chosen,
        lineage=outcome.candidate.lineage,
    )


def _parameters(proto: onnx.ModelProto) -> int:
    floating = (1, 10, 11, 16)  # FLOAT, FLOAT16, DOUBLE, BFLOAT16
    return sum(math.prod(tensor.dims) for tensor in proto.graph.initializer if tensor.data_type in floating)
