"""The global strategy: one table of what every replacement saves and costs, one integer program, one long recovery.

    profile the model                                                       (on the device)
    for each kind of site, the costliest first: time its relatives, then search operators that are fast and cost little
                                                                            (`search`)
    table: for each site and each of these operators: latency saved, loss caused                   (`table`)
    sets that reach the latency asked for at the least loss: of one family of operators each, and of all
                                                                            (`programme`)
    exchange single replacements while the joint loss falls, if all layers are trained and there are minutes for it
                                                                            (`exchange`)
    race: fit each set in model order, each site behind the replacements before it, train it a little, keep the better
        half, until one is left
    recover: train that one for all the time that is left                   (`recovery`)

Where no latency is asked for, several are tried with a short race each, and the fastest that keeps the accuracy is
trained on.

Reference: the thesis replaces greedily, one group after the other (algorithm 4; `iterative`). Choosing jointly is ours.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from gos_adapt.finetune.adapted import AdaptedModel
from gos_adapt.finetune.capture import MIN_SAMPLES
from gos_adapt.finetune.distil import fit_in_order
from gos_adapt.finetune.fit import DEFAULT, LONG, FitSettings
from gos_adapt.finetune.loss import SAMPLES, LossJudge
from gos_adapt.finetune.recovery import with_retrained
from gos_adapt.model.splice import splice
from gos_adapt.profiling.select import Selection, amdahl_bound
from gos_adapt.run_folder import ENDLESS_S, arrays_file
from gos_adapt.search.candidate import Outcome
from gos_adapt.search.cascade import timed
from gos_adapt.search.search import seed_candidates
from gos_adapt.strategies.exchange import exchanged
from gos_adapt.strategies.setting import WORTH, Adapted, Setting, Step, graph_key
from gos_adapt.strategies.table import Table
from gos_adapt.task import is_acceptable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gos_adapt.finetune.recovery import Recovered
    from gos_adapt.model.model import Replacement, Site
    from gos_adapt.profiling.profile import Profile
    from gos_adapt.search.cascade import Context, Settings
    from gos_adapt.strategies.table import RowSet

RELATIVES_SHARE, SEARCH_SHARE, SETS_SHARE, TRIAL_SHARE = 0.2, 0.15, 0.3, 0.15
"""Of the time left: at most for timing the relatives of all kinds of sites; for all searches; for timing sets once one
reaches the latency asked for; and, where none is asked for, for timing the sets of a trial, and again for its race."""
SEARCH_S = 45.0
"""At most, for one kind of site: what comes later are small changes of what was found."""
HEATS_SHARE, HEAT_STEPS = 0.24, 150
"""Of the time of a race, for its heats, each twice as long as the one before; and the steps of training that a set must
have in the first heat to show more than its fit: fewer are trained otherwise. Early heats mislead where what stays is
not fitted: on ResNet-56 15 shortcuts were behind 27 milder replacements after 135 steps, and ahead after 635."""
BEHIND = 3.0
"""A set whose loss is more than so many times the best one's, after long fits of all layers, is not trained. On
ResNet-56 one 7.1 times behind was still 5.0 times behind after 341 steps; sets up to 1.7 times behind have won."""
EXCHANGE_SHARE, COARSE_SAMPLES, COARSE_PAIRS = 0.1, 256, 1024
"""Of the time of a race, for finding better sets by their loss after coarse fits of everything; the samples for these
fits, and for these losses."""
COARSE = FitSettings(steps=800, learning_rate=0.01, macs=1e10)
"""On a branch of ResNet-20 44 steps."""
FIT_SHARE = 0.5
GENERATIONS = 4
FITS_SHARE, RACE_SAMPLES, RACE_BYTES = 0.05, 2048, 2**30
"""Of the time of a race, for the fits of what is trained (one set more may be fitted); the samples for them, and what
inputs and outputs of one operator may take on all of these: fewer are taken where they are larger."""
FIT_SLOWER = 2.5
"""Time of a multiply-accumulate in a fit, in small batches and with what is computed beside, over that in training."""
ANY_LOSS = 1e6
"""In a search only the trade-off counts: every finite loss is feasible, and every error of the fit."""
MOST_SETS = 4
LADDER = (1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
"""Speed-ups that are tried where none is asked for."""
PASSES = 1000
"""Over the training split at most: more teach little, even mixed anew. A trial takes a quarter."""


Choice = tuple["RowSet", "Recovered | None", tuple[str, ...]]
"""What was replaced, the model after recovery if anything was, and what a reader must know."""


class _Race(NamedTuple):
    """What a race can afford.

    Attributes:
        runners: Sets that are trained.
        seconds: For exchanges, fits, heats and the last training together.
        macs: For the fit of one operator.
    """

    runners: int
    seconds: float
    macs: float

    @property
    def contenders(self) -> int:
        """Sets that are fitted: where there are minutes for that, one more than the one that is trained."""
        return self.runners if self.fitting == DEFAULT else max(2, self.runners)

    @property
    def fitting(self) -> FitSettings:
        """Of every operator."""
        return replace(LONG, macs=self.macs) if self.macs > DEFAULT.macs else DEFAULT


class Joint(Setting):
    """The adaptation of one model on one device; `run` is the algorithm."""

    LESSONS = SAMPLES  # nothing is trained with them

    def run(self) -> Adapted:
        """Adapt; return what was done."""
        (profile,) = self.profiles("original", self.model)
        steps = self._search_all(profile)
        table = Table(self, steps, profile)
        goal_s = self.request.goal_s(profile.whole.median_s)
        chosen, recovered, notes = self._fastest(table, profile) if goal_s is None else self._reached(table, goal_s)
        if recovered is not None:
            self.keep(recovered.model, recovered.replacements)
        self.folder.journal.mark()
        by_site = {row.site.name: row for row in chosen}
        return Adapted(
            model=recovered.model if recovered else self.model,
            replacements=recovered.replacements if recovered else (),
            steps=tuple(
                replace(step, chosen={name: row.outcome for name, row in by_site.items() if row.step is step})
                for step in steps
            ),
            sites=self.sites,
            selection=Selection((), _reasons(self.sites, steps), 1.0),
            notes=notes,
        )

    # Search

    def _search_all(self, profile: Profile) -> list[Step]:
        """Search every kind of site that is worth it, with time in proportion to its latency."""
        kinds = [(group, profile.group_s(group)) for group in self.kinds(profile)]
        bounds = [amdahl_bound(profile.whole.median_s, latency_s) for _, latency_s in kinds]
        worth = [(*kind, bound) for kind, bound in zip(kinds, bounds, strict=True) if bound >= WORTH]
        relatives = self._relatives([group for group, *_ in worth], profile)
        waiting_s = sum(latency_s for _, latency_s, _ in worth)
        time_left = self.clock("searches", min(SEARCH_SHARE * self.time_left(), SEARCH_S * len(worth)))
        steps = []
        for number, (group, latency_s, bound) in enumerate(worth):
            seconds = time_left() * latency_s / waiting_s  # what one leaves over, the others have
            context = self._context(group, profile, self.clock(f"search {number}", seconds))
            steps.append(self._search(context, bound, number, relatives[number]))
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

    def _context(self, group: tuple[Site, ...], profile: Profile, time_left: Callable[[], float]) -> Context:
        judge = partial(LossJudge, self.model, group[0], self.lessons)
        return self.context(self.model, group, profile, judge, time_left)

    def _relatives(self, kinds: Sequence[tuple[Site, ...]], profile: Profile) -> list[tuple[Outcome, ...]]:
        """Time the seeds of families at every kind of site, the costliest kinds first."""
        finished: list[list[str]] | None = self.folder.journal.get("relatives")
        time_left = self.clock("relatives", RELATIVES_SHARE * self.time_left())
        found = []
        with self.progress.stage("time relatives", len(kinds)) as advance:
            for number, group in enumerate(kinds):
                seeds = [Outcome(seed, len(group)) for seed in seed_candidates(group) if seed.family]
                if finished is not None:  # a search has timed others since
                    seeds = [seed for seed in seeds if seed.candidate.operator.key in finished[number]]
                outcomes = timed(seeds, self._context(group, profile, time_left))
                found.append(tuple(outcome for outcome in outcomes if outcome.reason is None))
                advance()
        if finished is None:
            keys = [[outcome.candidate.operator.key for outcome in outcomes] for outcomes in found]
            self.folder.journal.put("relatives", keys)
        return found

    def _search(self, context: Context, bound: float, number: int, relatives: tuple[Outcome, ...]) -> Step:
        group = context.sites
        settings = search_settings(self.request.settings, GENERATIONS)
        front = self.searched(context, settings, number, f"search {len(group)} x {group[0].kind}")
        self.progress.detail(f"{len(front.best)} on the front")
        names = tuple(site.name for site in group)
        reason = f"selected: {len(group)} alike, together at most {bound:.2f}x"
        return Step(group, Selection(names, dict.fromkeys(names, reason), bound), front, {}, relatives)

    # Choice

    def _reached(self, table: Table, goal_s: float) -> Choice:
        """What keeps most of those sets that reach a latency."""
        planned = self._planned("sets", (1 - SETS_SHARE) * self.time_left())
        sets, notes = table.sets(goal_s, planned.contenders, SETS_SHARE * self.time_left(), patient=True)
        if not sets:
            return (), None, notes
        plan = self._planned("goal", self.time_left())
        if self._mends(plan) and not notes:
            seconds = EXCHANGE_SHARE * plan.seconds / len(sets)
            improved = [self._exchanged(rows, table, goal_s, seconds) for rows in sets]
            sets = list({frozenset(rows): rows for rows in improved}.values())
        chosen, recovered = self._race(sets, "goal", plan, math.inf, PASSES, deliver=True)
        lost = self.drop(recovered.score)
        if not is_acceptable(lost, self.request.epsilon):
            notes += (
                f"On the selection split {lost:.4f} was lost for the latency asked for, more than the "
                f"{self.request.epsilon:g} that is acceptable otherwise.",
            )
        return chosen, recovered, notes

    def _exchanged(self, start: RowSet, table: Table, goal_s: float, seconds: float) -> RowSet:
        """Improve a set by the loss of all replacements together, with all that stays fitted."""
        journal, key = self.folder.journal, f"exchanged:{goal_s!r}:{self._set_key(start)}"
        if key not in journal:
            time_left = self.clock(key, seconds)
            losses: list[float] = []

            def loss(rows: RowSet) -> float:
                own = f"joint:{self._set_key(rows)}"
                if own not in journal:
                    fitted = self._fit(rows, COARSE, COARSE_SAMPLES)
                    journal.put(own, min(self._teacher.loss(splice(self.model, fitted), COARSE_PAIRS), ANY_LOSS))
                losses.append(journal.get(own))
                return losses[-1]

            with self.progress.stage("exchange replacements"):
                best = exchanged(
                    start,
                    table.rows,
                    loss,
                    reaches=lambda rows: table.reaches(rows, goal_s),
                    goes_on=lambda rows: f"joint:{self._set_key(rows)}" in journal or time_left() > 0,
                )
            self.progress.note(
                f"{len(best)} replacements: joint loss after fitting {losses[0]:.4f}, "
                f"{journal.get(f'joint:{self._set_key(best)}'):.4f} after comparing {len(losses)} sets"
            )
            journal.put(key, [table.rows.index(row) for row in best])
        return tuple(table.rows[i] for i in journal.get(key))

    def _set_key(self, rows: RowSet) -> str:
        return graph_key(splice(self.model, [row.replacement for row in rows]))

    def _fastest(self, table: Table, profile: Profile) -> Choice:
        """The fastest step of the ladder that keeps the accuracy after a short race, then trained on."""
        whole_s = profile.whole.median_s
        ladder = [speed_up for speed_up in LADDER if whole_s * (1 - 1 / speed_up) <= table.most_s]
        best: tuple[RowSet, Recovered] | None = None
        raced: dict[tuple[RowSet, ...], tuple[RowSet, Recovered]] = {}
        plan, low, high = self._planned("trial", TRIAL_SHARE * self.time_left()), 0, len(ladder)
        while low < high:  # ladder[:low] keep the accuracy, ladder[high:] do not
            middle = (low + high) // 2
            name = f"trial-{ladder[middle]}"
            if name not in self.folder.journal:
                if self.time_left() < 3 * plan.seconds:  # its sets, its race, and the training of what was found
                    break
                self.folder.journal.put(name, True)
            sets, missed = table.sets(whole_s / ladder[middle], plan.contenders, plan.seconds)
            rungs = middle + 1
            if missed:  # what came nearest is timed already, and may reach a rung below
                high, rungs = middle, sum(table.reaches(rows, whole_s / rung) for rows in sets for rung in ladder)
                if rungs <= low:
                    continue
            if tuple(sets) not in raced:  # what reaches one rung may reach the next as well
                raced[tuple(sets)] = self._race(sets, name, plan, plan.seconds, PASSES / 4)
            chosen, trial = raced[tuple(sets)]
            self.progress.note(f"{ladder[rungs - 1]}x: {self.drop(trial.score):.4f} lost after a short recovery")
            if self.keeps_accuracy(trial):
                best, low = (chosen, trial), rungs
                self.keep(trial.model, trial.replacements)
            else:
                high = middle
        if best is None:
            why = "kept the accuracy after a short recovery" if raced else "was fast enough, or could be tried in time"
            return (), None, (f"No set of replacements {why}.",)
        chosen, trial = best
        final = self._recovered(trial.replacements, "fastest", math.inf, PASSES)
        return chosen, final if self.keeps_accuracy(final) else trial, ()

    def _planned(self, name: str, seconds: float) -> _Race:
        """What a race of so long can afford; decided once, so that a run that was killed goes on with the same."""
        key, seconds = f"race:{name}", min(seconds, ENDLESS_S)
        if key not in self.folder.journal:
            enough_s = HEAT_STEPS * self.step_s
            possible = [n for n in range(2, MOST_SETS + 1) if _heat_share(n, 0) * seconds >= n * enough_s]
            runners = max(possible, default=1)
            self.folder.journal.put(key, [runners, seconds, self._fit_macs(FITS_SHARE * seconds / runners)])
        return _Race(*self.folder.journal.get(key))

    def _fit_macs(self, seconds: float) -> float:
        """Multiply-accumulates for the fit of one operator, if those of all have so many seconds, about."""
        assert self.task is not None
        whole = with_retrained(self.model, ())
        # a step: the original's answers, and three times as much to learn from them
        step = 4 * self.task.batch * sum(replacement.operator.macs for replacement in whole)
        return seconds * step / (FIT_SLOWER * self.step_s * len(whole)) if self.step_s else DEFAULT.macs

    def _mends(self, plan: _Race) -> bool:
        """Whether what stays is fitted, too, and for long: the losses then tell far more."""
        return self.request.train_all and plan.fitting != DEFAULT

    def _race(
        self, sets: Sequence[RowSet], name: str, plan: _Race, seconds: float, passes: float, *, deliver: bool = False
    ) -> tuple[RowSet, Recovered]:
        """Fit all; train the best a little, keep the better half, and again for longer; train what is left to the end.

        Args:
            sets: That are fitted.
            name: Of the race: a run has each once.
            plan: For it.
            seconds: After which it ends.
            passes: Over the training split, at most, in the last training.
            deliver: Whether the best after the fits, and after each heat, is delivered should nothing better follow.

        Reference: successive halving; Jamieson and Talwalkar, "Non-stochastic best arm identification and
        hyperparameter optimization", AISTATS 2016.
        """
        race_left = self.folder.journal.clock(f"race {name}", seconds)
        fitted = {number: self._fitted(rows, plan.fitting) for number, rows in enumerate(sets)}
        losses = {number: self._teacher.loss(splice(self.model, own)) for number, own in fitted.items()}
        self._say(sets, losses, "fitted")
        ranked = sorted(losses, key=losses.__getitem__)
        if self._mends(plan):
            ranked = [number for number in ranked if losses[number] <= BEHIND * losses[ranked[0]]]
        runners = {number: fitted[number] for number in ranked[: plan.runners]}
        if deliver:
            self.keep(splice(self.model, fitted[ranked[0]]), fitted[ranked[0]])
        entered, heat = len(runners), 0
        while len(runners) > 1:
            share_s = _heat_share(entered, heat) * plan.seconds / len(runners)
            results = {
                number: self._recovered(replacements, f"{name}-{number}-{heat}", share_s, passes / 8)
                for number, replacements in runners.items()
            }
            losses = {number: result.loss for number, result in results.items()}
            self._say(sets, losses, f"heat {heat + 1}")
            ranked = sorted(losses, key=losses.__getitem__)
            if deliver:
                self.keep(results[ranked[0]].model, results[ranked[0]].replacements)
            runners = {number: results[number].replacements for number in ranked[: (len(ranked) + 1) // 2]}
            heat += 1
        ((number, replacements),) = runners.items()
        return sets[number], self._recovered(replacements, name, max(0.0, race_left()), passes)

    def _say(self, sets: Sequence[RowSet], losses: Mapping[int, float], when: str) -> None:
        for number, loss in losses.items():
            family = ", ".join(dict.fromkeys(row.family for row in sets[number]))
            self.progress.note(f"{when}: {len(sets[number])} replacements ({family}): loss {loss:.4f}")

    # Recovery

    def _recovered(self, replacements: tuple[Replacement, ...], name: str, seconds: float, passes: float) -> Recovered:
        steps, train_all = self.passes(passes), self.request.train_all
        return self.recover(replacements, name, seconds=seconds, steps=steps, train_all=train_all)

    def _fitted(self, chosen: RowSet, settings: FitSettings) -> tuple[Replacement, ...]:
        """Fit, or read from a file what was fitted before."""
        ordered = self._ordered(chosen)
        key = f"fitted:{settings.steps}:{settings.macs:.3g}:{graph_key(splice(self.model, ordered))}"
        file = arrays_file("fitted", key)
        if key not in self.folder.journal:
            with self.progress.stage("fit in model order"):
                fitted = self._fit(chosen, settings, RACE_SAMPLES)
            self.save_weights(file, [replacement.weights for replacement in fitted])
            self.folder.journal.put(key, True)
        return self.with_weights(file, ordered)

    def _fit(self, chosen: RowSet, settings: FitSettings, n: int) -> tuple[Replacement, ...]:
        """Fit the chosen in model order on at most `n` samples."""
        assert self.task is not None
        ordered = self._ordered(chosen)
        names = {replacement.site for replacement in ordered}
        adapted = AdaptedModel(self.model, [site for site in self.sites if site.name in names])
        # what runs between the replaced sites is computed of all samples at once, too
        sizes = (math.prod(site.input_shape) + math.prod(site.output_shape) for site in self.sites)
        largest = 4 * max(sizes)
        samples, _ = self.task.training.part(slice(0, min(n, max(MIN_SAMPLES, RACE_BYTES // largest)))).arrays()
        with torch.no_grad():
            start = adapted.at_first_cut(torch.from_numpy(samples))
        operators, initial = [r.operator for r in ordered], [r.weights for r in ordered]
        fitted = fit_in_order(adapted, start, operators, initial, settings)
        return tuple(replace(r, weights=operator.weights()) for r, operator in zip(ordered, fitted, strict=True))

    def _ordered(self, chosen: RowSet) -> tuple[Replacement, ...]:
        """The chosen in model order; with `train_all` what stays, too, which makes up for what they lack."""
        replacements: Sequence[Replacement] = [row.replacement for row in chosen]
        if self.request.train_all:
            replacements = with_retrained(self.model, replacements)
        by_site = {replacement.site: replacement for replacement in replacements}
        return tuple(by_site[site.name] for site in self.sites if site.name in by_site)


def _heat_share(runners: int, heat: int) -> float:
    """Of the time of a race of so many sets, what its heat `heat` has, from 0; each leaves the better half."""
    heats = (runners - 1).bit_length()
    return HEATS_SHARE * 2.0**heat / (2.0**heats - 1)


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


def _reasons(sites: Sequence[Site], steps: Sequence[Step]) -> dict[str, str]:
    """For every site why it was searched or not."""
    reasons = {site.name: "not selected: too little latency to gain" for site in sites}
    return reasons | {name: reason for step in steps for name, reason in step.selection.reasons.items()}
