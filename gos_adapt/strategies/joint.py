"""The global strategy: one table of what every replacement saves and costs, one integer program, one long recovery.

    profile the model                                                       (on the device)
    for each kind of site, the costliest first: search operators that are fast and cost little     (METHOD 1.3, 1.4)
    table: for each site and each operator found for its kind: latency saved, loss caused
    sets that reach the latency asked for at the least loss: from all operators, and from those of one rank of speed
                                                                            (`programme`)
    race: fit each set in model order, each site behind the replacements before it, train it a little, keep the better
        half, until one is left                                             (METHOD 1.4.2)
    recover: train that one for all the time that is left                   (METHOD 1.4.4)

Where no latency is asked for, several are tried with a short recovery each, and the fastest that keeps the accuracy is
trained on.

The table's losses are those right after fitting, of one replacement alone. They rank the sites for one operator; they
do not tell what training mends. On ResNet-56, 27 milder replacements had 80 % right after fitting and 89 % after 5,000
steps, 14 branches replaced by their shortcuts 12 % and, after 700 steps, 94 %, at the same latency. Hence the race.

Reference: the thesis replaces greedily, one group after the other (algorithm 4; `iterative`). Choosing jointly is ours.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from gos_adapt.cost.measured import clearly_faster
from gos_adapt.errors import Rejection
from gos_adapt.finetune.adapted import AdaptedModel
from gos_adapt.finetune.distil import fit_in_order
from gos_adapt.finetune.fit import DEFAULT, THOROUGH
from gos_adapt.finetune.loss import SAMPLES, LossJudge
from gos_adapt.model.model import Replacement
from gos_adapt.model.sites import find_sites
from gos_adapt.model.splice import splice
from gos_adapt.profiling.select import Selection, amdahl_bound
from gos_adapt.quantities import Measurement
from gos_adapt.strategies.programme import Option, cheapest_set, largest_saving
from gos_adapt.strategies.setting import QUICK, Adapted, Setting, Step, graph_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gos_adapt.finetune.recovery import Recovered
    from gos_adapt.model.model import Array, Site
    from gos_adapt.profiling.profile import Profile
    from gos_adapt.search.candidate import Outcome
    from gos_adapt.search.cascade import Settings

WORTH = 1.01
"""Speed-up that a kind of site must promise at best to be searched."""
SEARCH_SHARE, TABLE_SHARE, TRIAL_SHARE = 0.25, 0.2, 0.15
"""Of the time left: at most for all searches, for the table, and for each trial where no latency is asked for."""
RACE_SHARE, HEAT_S = 0.25, 30.0
"""Of the time left, for each heat; and what one set must have of it to show anything: fewer sets run otherwise."""
FIT_SHARE = 0.5
GENERATIONS = 4
KEPT = 5
"""Operators of each kind that enter the table."""
THOROUGH_SAMPLES = 1024
"""For the fit of what was chosen: on resnet20, narrowed, 90 instead of 87 % before any training, for ten seconds."""
ANY_LOSS = 1e6
"""In a search only the trade-off counts: every finite loss is feasible, and every error of the fit."""
ROUNDS = 6
"""Sets built and timed until one reaches the latency: the sum of savings is a guess."""
NEAR = 0.03
"""Of the saving asked for: a set that saves no more than this above it is near enough."""
LADDER = (1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
"""Speed-ups that are tried where none is asked for."""
PASSES = 200
"""Over the training split at most: more teach little. A trial takes a quarter."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One row of the table.

    Attributes:
        step: The search that found it.
        outcome: Operator and measured latency.
        site: Where it would go.
        rank: Of the operator among those kept for its kind: 0 is the fastest.
        weights: Where fitting starts.
        option: What it saves and costs there.
    """

    step: Step
    rank: int
    outcome: Outcome
    site: Site
    weights: tuple[Array, ...]
    option: Option


class Joint(Setting):
    """The adaptation of one model on one device; `run` is the algorithm."""

    LESSONS = SAMPLES  # nothing is trained with them

    def run(self) -> Adapted:
        """Adapt; return what was done."""
        sites = find_sites(self.model)
        profile = self.profile(self.model, sites, "original")
        steps = self._search_all(profile)
        table = self._table(steps, profile)
        goal_s = self.request.goal_s(profile.whole.median_s)
        if goal_s is None:
            chosen, recovered, notes = self._fastest(table, profile)
        else:
            sets, notes = self._sets(table, profile, goal_s)
            chosen, recovered = self._race(sets) if sets else ([], None)
            if recovered is not None and (lost := self.drop(recovered.score)) >= self.request.epsilon:
                notes += (
                    f"On the selection split {lost:.4f} was lost for the latency asked for, more than the "
                    f"{self.request.epsilon:g} that is acceptable otherwise.",
                )
        if recovered is not None:
            self.keep(recovered.model, recovered.replacements)
        self.folder.journal.mark()
        by_site = {entry.site.name: entry for entry in chosen}
        return Adapted(
            model=recovered.model if recovered else self.model,
            replacements=recovered.replacements if recovered else (),
            steps=tuple(
                replace(step, chosen={name: e.outcome for name, e in by_site.items() if e.step is step})
                for step in steps
            ),
            profile=profile,
            sites=sites,
            selection=Selection((), _reasons(sites, steps), 1.0),
            notes=notes,
        )

    # Search

    def _search_all(self, profile: Profile) -> list[Step]:
        """Search every kind of site that is worth it, with time in proportion to its latency."""
        kinds = [(group, profile.group_s(group)) for group in self.kinds(profile)]
        bounds = [amdahl_bound(profile.whole.median_s, latency_s) for _, latency_s in kinds]
        worth = [(*kind, bound) for kind, bound in zip(kinds, bounds, strict=True) if bound >= WORTH]
        waiting_s = sum(latency_s for _, latency_s, _ in worth)
        time_left = self._clock(None, SEARCH_SHARE * self.time_left())
        steps = []
        for number, (group, latency_s, bound) in enumerate(worth):
            seconds = time_left() * latency_s / waiting_s  # what one leaves over, the others have
            steps.append(self._search(group, profile, bound, number, seconds))
            waiting_s -= latency_s
        return steps

    def kinds(self, profile: Profile) -> list[tuple[Site, ...]]:
        """Sites that are searched together, the costliest kind first."""
        eligible = self.eligible(self.model)
        inside = {name for site in eligible if site.kind == "branch" for name in site.nodes}
        alike: defaultdict[str, list[Site]] = defaultdict(list)
        for site in eligible:
            # A layer inside a branch is part of the branch's operator, and changed with it.
            if profile.sites[site.name].ok and (site.kind == "branch" or inside.isdisjoint(site.nodes)):
                alike[site.likeness].append(site)
        return sorted(map(tuple, alike.values()), key=lambda group: -profile.group_s(group))

    def _search(self, group: tuple[Site, ...], profile: Profile, bound: float, number: int, seconds: float) -> Step:
        time_left = self._clock(self.replayed(number), seconds)
        context = self.context(
            self.model, group, profile, partial(LossJudge, self.model, group[0], self.lessons, QUICK), time_left
        )
        settings = search_settings(self.request.settings, GENERATIONS)
        front = self.searched(context, settings, number, f"search {len(group)} x {group[0].kind}")
        self.progress.detail(f"{len(front.best)} on the front")
        names = tuple(site.name for site in group)
        reason = f"selected: {len(group)} alike, together at most {bound:.2f}x"
        return Step(group, Selection(names, dict.fromkeys(names, reason), bound), front, {})

    # Table

    def _table(self, steps: Sequence[Step], profile: Profile) -> list[Entry]:
        """Every operator kept, at every site of its kind; the first operator of all kinds before any second."""
        kept = {id(step): self._kept(step) for step in steps}
        finished = self.folder.journal.get("table")
        time_left = self._clock(finished, TABLE_SHARE * self.time_left())
        ranks = range(max((len(operators) for operators in kept.values()), default=0))
        rows = [(step, rank) for rank in ranks for step in steps if rank < len(kept[id(step)])]
        entries = []
        with self.progress.stage("what every replacement costs", sum(len(step.sites) for step, _ in rows)) as advance:
            for step, rank in rows:
                for k, site in enumerate(step.sites):
                    entry = self._entry(step, rank, *kept[id(step)][rank], k, profile.sites[site.name], time_left)
                    if entry is not None:
                        entries.append(entry)
                    advance()
        if finished is None:
            self.folder.journal.put("table", len(entries))
        return entries

    def _kept(self, step: Step) -> list[tuple[Outcome, float]]:
        """Up to `KEPT` of a front, spread over it, and the shortcut, which other operators of no latency may dominate.

        Returns:
            Each with its latency relative to the original's, both tuned, the fastest first.
        """
        best = step.front.best
        if len(best) > KEPT:
            best = tuple(best[round(i * (len(best) - 1) / (KEPT - 1))] for i in range(KEPT))
        shortcuts = (o for o in step.front.outcomes if o.feasible and o.candidate.lineage == ("seed shortcut",))
        best = tuple({outcome.candidate.operator.key: outcome for outcome in (*shortcuts, *best)}.values())
        group = "+".join(site.name for site in step.sites)
        key = f"tuned:{graph_key(self.model)}:{group}:{'+'.join(outcome.candidate.operator.key for outcome in best)}"
        if key not in self.folder.journal:
            batch = [(step.sites[0].operator, step.sites[0].weights)]
            batch += [(outcome.candidate.operator, outcome.candidate.weights[0]) for outcome in best]
            measured = self.workbench.measure_operators(batch, tuned=True)
            self.folder.journal.put(key, [latency.to_json() for latency in measured])
        original, *latencies = [Measurement.from_json(form) for form in self.folder.journal.get(key)]
        return [
            (replace(outcome, latency=latency, original_latency=original), latency.median_s / original.median_s)
            for outcome, latency in zip(best, latencies, strict=True)
            if original.ok and latency.ok and clearly_faster(latency, original)
        ]

    def _entry(
        self,
        step: Step,
        rank: int,
        outcome: Outcome,
        ratio: float,
        k: int,
        latency: Measurement,
        time_left: Callable[[], float],
    ) -> Entry | None:
        site, candidate = step.sites[k], outcome.candidate
        key = f"loss:{graph_key(self.model)}:{site.name}:{candidate.operator.key}"
        if key not in self.folder.journal:
            if time_left() <= 0:
                return None
            judge = LossJudge(self.model, site, self.lessons, DEFAULT)
            self.folder.journal.put(key, judge(candidate.operator, (candidate.weights[k],)).drop)
        loss = self.folder.journal.get(key)
        option = Option(frozenset(site.nodes), (1 - ratio) * latency.median_s, loss)
        self.progress.detail(
            f"{site.name}: {candidate.lineage[-1]} saves {1e6 * option.saves_s:.1f} µs, loss {loss:.3g}"
        )
        return Entry(step, rank, outcome, site, candidate.weights[k], option)

    # Choice

    def _reach(self, table: Sequence[Entry], profile: Profile, goal_s: float) -> tuple[list[Entry], tuple[str, ...]]:
        """The entries that reach a latency at the least loss, by measurement of the whole; and what to say of it.

        What a set saves differs from the sum of its savings, so the saving that the programme is asked for is corrected
        by what the last set saved, up or down, until a set just reaches the goal.
        """
        whole_s, limit = profile.whole.median_s, self.request.max_sites
        options = [entry.option for entry in table]
        most_s, goal_saving_s = largest_saving(options, limit), whole_s - goal_s
        if goal_saving_s <= 0:
            return [], ("The latency that was asked for is that of the original, or more.",)
        reached: list[Entry] | None = None
        chosen: list[Entry] = []
        wanted_s = goal_saving_s
        for _ in range(ROUNDS):
            found = cheapest_set(options, min(wanted_s, most_s), limit)
            before, chosen = chosen, [] if isinstance(found, Rejection) else [table[i] for i in found]
            if not chosen or chosen == before:
                break
            saved_s = whole_s * (1 - self._ratio(chosen))
            added_s = sum(entry.option.saves_s for entry in chosen)
            self.progress.note(
                f"{len(chosen)} replacements: {whole_s / (whole_s - saved_s):.2f}x measured, "
                f"{whole_s / (whole_s - added_s):.2f}x added up, loss {_loss(chosen):.3g}"
            )
            if saved_s >= goal_saving_s and (reached is None or _loss(chosen) < _loss(reached)):
                reached = chosen
            if (abs(saved_s / goal_saving_s - 1) <= NEAR and reached) or (wanted_s >= most_s and not reached):
                break
            wanted_s = added_s * goal_saving_s / max(saved_s, 0.1 * goal_saving_s)
        if reached is None:
            return chosen, (f"No set of replacements that was found reaches the latency asked for, {goal_s:.4g} s.",)
        return reached, ()

    def _sets(
        self, table: Sequence[Entry], profile: Profile, goal_s: float
    ) -> tuple[list[list[Entry]], tuple[str, ...]]:
        """Different sets that reach a latency: from the whole table, and from the operators of one rank alone."""
        best, notes = self._reach(table, profile, goal_s)
        if notes or not best:
            return [best] if best else [], notes
        sets = [best]
        for rank in sorted({entry.rank for entry in table}):
            chosen, missed = self._reach([entry for entry in table if entry.rank == rank], profile, goal_s)
            if not missed and chosen not in sets:
                sets.append(chosen)
        return sets, ()

    def _race(self, sets: Sequence[list[Entry]]) -> tuple[list[Entry], Recovered]:
        """Train all a little, leave out the worse half, and again; then train the one that is left to the end.

        Reference: successive halving; Jamieson and Talwalkar, "Non-stochastic best arm identification and
        hyperparameter optimization", AISTATS 2016.
        """
        if "runners" not in self.folder.journal:
            self.folder.journal.put("runners", int(min(len(sets), max(1, RACE_SHARE * self.time_left() / HEAT_S))))
        running = range(self.folder.journal.get("runners"))
        runners = {number: self._fitted(sets[number], f"set-{number}") for number in running}
        heat = 0
        while len(runners) > 1:
            seconds = RACE_SHARE * self.time_left() / len(runners)
            results = {
                number: self._recovered(replacements, f"heat-{heat}-{number}", seconds, PASSES / 8)
                for number, replacements in runners.items()
            }
            for number, result in results.items():
                self.progress.note(
                    f"set {number} ({len(sets[number])} replacements): {self.drop(result.score):.4f} lost so far"
                )
            ranked = sorted(results, key=lambda number: self.drop(results[number].score))
            runners = {number: results[number].replacements for number in ranked[: len(ranked) // 2]}
            heat += 1
        ((number, replacements),) = runners.items()
        return sets[number], self._recovered(replacements, "goal", math.inf, PASSES)

    def _fastest(
        self, table: Sequence[Entry], profile: Profile
    ) -> tuple[list[Entry], Recovered | None, tuple[str, ...]]:
        """The fastest step of the ladder that keeps the accuracy after a short recovery, then trained on."""
        whole_s = profile.whole.median_s
        most_s = largest_saving([entry.option for entry in table], self.request.max_sites)
        ladder = [speed_up for speed_up in LADDER if whole_s * (1 - 1 / speed_up) <= most_s]
        best: tuple[list[Entry], Recovered] | None = None
        seconds, low, high = TRIAL_SHARE * self.time_left(), 0, len(ladder)
        while low < high:  # ladder[:low] keep the accuracy, ladder[high:] do not
            middle = (low + high) // 2
            chosen, missed = self._reach(table, profile, whole_s / ladder[middle])
            if missed:
                high = middle
                continue
            name = f"trial-{ladder[middle]}"
            trial = self._recovered(self._fitted(chosen, name), name, seconds, PASSES / 4)
            lost = self.drop(trial.score)
            self.progress.note(f"{ladder[middle]}x: {lost:.4f} lost after a short recovery")
            if lost < self.request.epsilon:
                best, low = (chosen, trial), middle + 1
                self.keep(trial.model, trial.replacements)
            else:
                high = middle
        if best is None:
            return [], None, ("No set of replacements kept the accuracy after a short recovery.",)
        chosen, trial = best
        return chosen, self._recovered(trial.replacements, "fastest", math.inf, PASSES), ()

    def _clock(self, finished: int | None, seconds: float) -> Callable[[], float]:
        """Seconds left of a stage: none if an earlier process finished it, so that it is repeated as it was."""
        if finished is not None:
            return lambda: 0.0
        end = time.monotonic() + seconds
        return lambda: min(self.time_left(), end - time.monotonic())

    def _ratio(self, chosen: Sequence[Entry]) -> float:
        """Latency of the model with these replacements, as they are before training, over the original's."""
        model = splice(self.model, _replacements(chosen))
        key = f"whole:{graph_key(model)}"
        if key not in self.folder.journal:
            with self.progress.stage("time the whole"):
                self.folder.journal.put(key, [m.to_json() for m in self.workbench.measure_models([self.model, model])])
        original, adapted = (Measurement.from_json(form) for form in self.folder.journal.get(key))
        return adapted.best_s / original.best_s  # a neighbour on the machine moves medians by a tenth

    # Recovery

    def _recovered(self, replacements: tuple[Replacement, ...], name: str, seconds: float, passes: float) -> Recovered:
        steps, train_all = self.passes(passes), self.request.train_all
        return self.recover(replacements, name, seconds=seconds, steps=steps, train_all=train_all)

    def _fitted(self, chosen: Sequence[Entry], name: str) -> tuple[Replacement, ...]:
        """Fit the chosen in model order."""
        file = f"fitted-{name}.safetensors"
        key = f"fitted:{name}:{graph_key(splice(self.model, _replacements(chosen)))}"
        replacements = {replacement.site: replacement for replacement in _replacements(chosen)}
        adapted = AdaptedModel(self.model, [entry.site for entry in chosen])
        ordered = [replacements[site.name] for site in adapted.sites]
        if key not in self.folder.journal:
            assert self.task is not None
            samples, _ = self.task.training.part(slice(0, THOROUGH_SAMPLES)).arrays()
            with torch.no_grad():
                start = adapted.at_first_cut(torch.from_numpy(samples))
            operators, initial = [r.operator for r in ordered], [r.weights for r in ordered]
            with self.progress.stage("fit in model order"):
                fitted = fit_in_order(adapted, start, operators, initial, THOROUGH)
            self.save_weights(file, [operator.weights() for operator in fitted])
            self.folder.journal.put(key, True)
        return self.with_weights(file, ordered)


def search_settings(settings: Settings, generations: int) -> Settings:
    """Return the numbers with which one kind of site is searched: only the trade-off of latency and loss counts."""
    return replace(
        settings,
        objectives=("latency change (s)", "loss"),
        epsilon=ANY_LOSS,
        generations=generations,
        judgements=settings.measurements,
        max_fit_error=math.inf,
        fit_share=FIT_SHARE,
    )


def _loss(chosen: Sequence[Entry]) -> float:
    return sum(entry.option.loss for entry in chosen)


def _replacements(chosen: Sequence[Entry]) -> tuple[Replacement, ...]:
    return tuple(
        Replacement(e.site.name, e.outcome.candidate.operator, e.weights, e.outcome.candidate.lineage) for e in chosen
    )


def _reasons(sites: Sequence[Site], steps: Sequence[Step]) -> dict[str, str]:
    """For every site why it was searched or not."""
    reasons = {site.name: "not selected: too little latency to gain" for site in sites}
    return reasons | {name: reason for step in steps for name, reason in step.selection.reasons.items()}
