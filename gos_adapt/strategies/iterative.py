"""The adaptation loop: select the worst operator, search its replacement, put it in, again.

    until nothing is left to replace, enough is replaced, or the time is over:
        profile the model as it is now          (on the device)
        select the worst site and those like it (`profiling.select`)
        search, fit, fine-tune                  (`search`, `finetune`)
        splice the best into the model
        recover: train all replacements together when much of the allowance is used

Every step is a function of the seed and of what the journal holds, so a run that was killed replays its history and
goes on; whatever took time to find out is in the journal or in a file.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gos_adapt.finetune.distil import AccuracyJudge
from gos_adapt.finetune.equivalence import TOLERANCE, EquivalenceJudge
from gos_adapt.model.model import Replacement
from gos_adapt.model.sites import overlaps
from gos_adapt.model.splice import splice
from gos_adapt.profiling.select import Memory, Selection, SiteCost, amdahl_bound, select
from gos_adapt.search.objectives.latency import latency_change_s
from gos_adapt.search.search import choose
from gos_adapt.strategies.setting import WORTH, Adapted, Setting, Step
from gos_adapt.strategies.tuned_latency import timed_tuned

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gos_adapt.model.model import Model, Site
    from gos_adapt.profiling.profile import Profile

MAX_SITES = 10
"""Thesis 4.3."""
FINALISTS, TUNE_SHARE = 3, 0.1
"""Operators of a front that meet again on tuned schedules, and the share of the time left that tuning may take."""
RECOVER_ABOVE = 0.5
"""Share of the allowance that may be used before all replacements are trained together."""
RECOVERY_STEPS = 200
PASSES = 200
"""Over the training split at most, when everything is trained at the end: more teach little."""
HOPELESS = 0.05
"""Drop, in the metric's terms, that a short training does not mend; twice the allowance where that is more."""
ENOUGH = 0.25
"""Share of the allowance below which a candidate need not be trained to be judged."""


class Iterative(Setting):
    """The adaptation of one model on one device; `run` is the algorithm."""

    LESSONS = 8192  # more would cost more to prepare than they add in so few steps

    def run(self) -> Adapted:
        """Adapt; return what was done."""
        (profile,) = self.profiles("original", self.model)
        goal_s = self.request.goal_s(profile.whole.median_s)
        replacements: tuple[Replacement, ...] = ()
        steps: list[Step] = []
        current, selected = self.model, set[str]()
        while True:
            sites = self.eligible(current)
            selection = self._select(current, sites, profile, selected, replacements)
            if not selection.group:
                break
            if stop := self._stop(current, profile, selection, replacements, goal_s, len(steps)):
                selection = none_selected(selection, stop)
                break
            group = tuple(site for site in sites if site.name in selection.group)
            step = self._step(current, group, selection, profile, len(steps))
            steps.append(step)
            selected.update(selection.group)
            if not step.chosen:
                continue
            replacements += _replacements(step)
            replacements = self._recovered(replacements, step, len(steps))
            current = splice(self.model, replacements)
            self.keep(current, replacements)
            self._announce(replacements, step)
            (profile,) = self.profiles(f"after step {len(steps)}", current)
        if self.request.train_all and self.task is not None and replacements:
            recovered = self.recover(replacements, "all", train_all=True, steps=self.passes(PASSES))
            if self.keeps_accuracy(recovered):
                current, replacements = recovered.model, recovered.replacements
                self.keep(current, replacements)
        self.folder.journal.mark()  # a process that goes on from here knows how long this one searched
        return Adapted(current, replacements, tuple(steps), self.sites, selection)

    def _stop(
        self,
        current: Model,
        profile: Profile,
        selection: Selection,
        replacements: Sequence[Replacement],
        goal_s: float | None,
        number: int,
    ) -> str:
        """Why search `number` is not made; empty while there is reason to go on."""
        if not self.is_finished(number) and self.time_left() <= 0:
            return "not selected: the time was over"
        if len(replacements) >= self._max_sites:
            return "not selected: enough sites are replaced"
        if not self._memory(current).fits:
            return ""
        if goal_s is not None and profile.whole.median_s <= goal_s:
            return "not selected: the latency that was asked for is reached"
        if selection.bound < WORTH:
            return f"not worth replacing: at most {selection.bound:.3f}x"
        return ""

    def _memory(self, current: Model) -> Memory:
        return Memory(model_bytes(current), self.workbench.device.memory_bytes)

    @property
    def _max_sites(self) -> int:
        return self.request.max_sites or MAX_SITES

    def _select(
        self,
        current: Model,
        sites: Sequence[Site],
        profile: Profile,
        selected: set[str],
        replacements: Sequence[Replacement],
    ) -> Selection:
        costs = [
            SiteCost(
                site.name,
                site.likeness,
                profile.sites[site.name],
                site.operator.parameters,
                frozenset(other.name for other in sites if other is not site and overlaps(site, other)),
            )
            for site in sites
        ]
        limit = max(1, min(self.request.group_limit, self._max_sites - len(replacements)))
        selection = select(
            costs,
            self._memory(current),
            whole_s=profile.whole.median_s,
            selected=selected,
            replaced={replacement.site for replacement in replacements},
            limit=limit,
        )
        group = [site for site in sites if site.name in selection.group]
        return replace(selection, bound=amdahl_bound(profile.whole.median_s, profile.group_s(group)))

    def _step(
        self,
        current: Model,
        group: tuple[Site, ...],
        selection: Selection,
        profile: Profile,
        number: int,
    ) -> Step:
        names = ", ".join(site.name for site in group)
        self.progress.note(f"{group[0].kind} {names}: at most {selection.bound:.2f}x if it cost nothing")
        time_left = self.clock(f"search {number}", self._share())
        settings = replace(self.request.settings, epsilon=self.request.epsilon if self.task else TOLERANCE)
        context = self.context(current, group, profile, partial(self._judge, current, group, time_left), time_left)
        front = self.searched(context, settings, number, f"search {number + 1} ({group[0].kind})")
        tuning_left = self.clock(f"tune what search {number} found", TUNE_SHARE * self.time_left())
        (finalists,) = timed_tuned(self, current, [(group, front.best[:FINALISTS])], tuning_left)
        chosen = choose(finalists)
        if chosen is None:
            self.progress.note("nothing both good enough and faster was found here")
        else:
            self.progress.note(
                f"replaced by {chosen.candidate.lineage[0]} ({' then '.join(chosen.candidate.lineage[1:])})"
            )
        return Step(group, selection, front, {} if chosen is None else dict.fromkeys(selection.group, chosen))

    def _share(self) -> float:
        """Time for the next search: a third of what is left, so that later sites have their turn."""
        return self.time_left() / 3

    def _judge(self, current: Model, group: Sequence[Site], time_left: Callable[[], float]) -> Any:
        if self.task is None:
            return EquivalenceJudge(current, group, self.samples, np.random.default_rng(self.request.seed))
        return AccuracyJudge(
            current,
            group,
            self.lessons,
            self.original_score,
            hopeless=max(HOPELESS, 2 * self.request.epsilon),
            enough=ENOUGH * self.request.epsilon,
            time_left=time_left,
        )

    def _recovered(self, replacements: tuple[Replacement, ...], step: Step, number: int) -> tuple[Replacement, ...]:
        """Train all replacements together when the last one used much of the allowance."""
        outcome = next(iter(step.chosen.values()))
        assert outcome.judgement is not None
        if self.task is None or outcome.judgement.drop < RECOVER_ABOVE * self.request.epsilon:
            return replacements
        recovered = self.recover(replacements, str(number), steps=RECOVERY_STEPS)
        return recovered.replacements if self.keeps_accuracy(recovered) else replacements

    def _announce(self, replacements: Sequence[Replacement], step: Step) -> None:
        outcome = next(iter(step.chosen.values()))
        assert outcome.judgement is not None
        saved_s = -latency_change_s(outcome)
        kept = "" if self.task is None else f", {outcome.judgement.drop:.4f} of {self.task.metric.name} lost"
        self.progress.best(f"{len(replacements)} sites replaced, the last saves {1e6 * saved_s:.1f} µs{kept}")


def none_selected(selection: Selection, why: str) -> Selection:
    """Nothing more is selected, and this is why; sites that were out before keep their own reason."""
    reasons = {name: why if name in selection.group else reason for name, reason in selection.reasons.items()}
    return Selection((), reasons, 1.0)


def model_bytes(model: Model) -> int:
    """Bytes of the model's weights and of the largest two of its tensors, which live at the same time at batch 1."""
    graph = model.proto.graph
    weights = sum(4 * int(math.prod(initializer.dims)) for initializer in graph.initializer)
    tensors = sorted(
        4 * int(math.prod(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim))
        for value in (*graph.input, *graph.value_info, *graph.output)
    )
    return weights + sum(tensors[-2:])


def _replacements(step: Step) -> tuple[Replacement, ...]:
    """One outcome for the whole group: its judgement holds the weights of every site."""
    outcome = next(iter(step.chosen.values()))
    assert outcome.judgement is not None
    candidate = outcome.candidate
    return tuple(
        Replacement(site.name, candidate.operator, weights, candidate.lineage)
        for site, weights in zip(step.sites, outcome.judgement.weights, strict=True)
    )
