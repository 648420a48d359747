"""The global strategy's table: what every operator that was found saves and costs at every site where it fits.

Rows come in families. One family is one idea at all kinds of sites (`Seed.family`: shortcuts, narrowed layers, ...), or
what searches ranked alike. Sets are chosen by an integer program (`programme`), from one family or from all rows.

The losses are those right after fitting, of one replacement alone: enough to find a set to begin with, which
`exchange` improves. Between families they do not tell what training mends. On ResNet-56, 27 milder replacements had
80 % right after fitting and 89 % after 5,000 steps, 14 branches replaced by their shortcuts 12 % and, after 700 steps,
94 %, at the same latency.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from gos_adapt.cost.measured import ratio_in_turns
from gos_adapt.errors import Rejection
from gos_adapt.finetune.loss import LossJudge
from gos_adapt.model.model import Replacement
from gos_adapt.model.splice import splice
from gos_adapt.operators.hints import is_hinted
from gos_adapt.quantities import Measurement
from gos_adapt.search.candidate import NO_NUMBER, Judgement
from gos_adapt.search.search import is_faster
from gos_adapt.strategies.programme import MeasuredSet, Option, cheapest_set, largest_saving, measured_sets
from gos_adapt.strategies.setting import graph_key
from gos_adapt.strategies.tuned_latency import in_turn, timed_tuned
from gos_adapt.workbench import CANDIDATE_EFFORT, WHOLE_EFFORT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from gos_adapt.model.model import Array, Site
    from gos_adapt.profiling.profile import Profile
    from gos_adapt.search.candidate import Outcome
    from gos_adapt.strategies.setting import Setting, Step

KEPT = 5
"""Operators of each front that enter the table, beside those of a family."""
TUNE_SHARE, LOSS_SHARE = 0.05, 0.1
"""Of the time left: at most for tuned schedules, and for losses. Sets are timed on tuned schedules anyhow."""
REACH = 0.8
"""Of the saving asked for: rows that save less, added up, are not tried; sets save up to a tenth more than that."""


@dataclass(frozen=True, eq=False)
class Row:
    """One operator at one site.

    Attributes:
        step: The search that found it.
        family: Rows that may make a set of their own.
        outcome: Operator, its measured latency, and the loss it causes at the site.
        site: Where it would go.
        weights: Where fitting starts.
        option: What it saves and costs there.
    """

    step: Step
    family: str
    outcome: Outcome
    site: Site
    weights: tuple[Array, ...]
    option: Option

    @property
    def replacement(self) -> Replacement:
        """What goes into the model, not fitted yet."""
        candidate = self.outcome.candidate
        return Replacement(self.site.name, candidate.operator, self.weights, candidate.lineage)


RowSet = tuple[Row, ...]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class _Kept:
    """An operator for one kind of site."""

    step: Step
    family: str
    outcome: Outcome


class _Source(NamedTuple):
    """Rows that sets are chosen from.

    Attributes:
        name: For messages.
        rows: To choose from.
        likely: What is chosen, if latencies add up.
        bred: Whether searches found any of them.
    """

    name: str
    rows: RowSet
    likely: frozenset[Row]
    bred: bool


class Table:
    """All rows, and the sets that reach a latency.

    Args:
        setting: The model on its device.
        steps: The searches.
        profile: Of the original.
    """

    def __init__(self, setting: Setting, steps: Sequence[Step], profile: Profile) -> None:
        self._setting, self._profile = setting, profile
        self._overestimate = 1.0  # what sets saved by the table, of what they saved as measured, so far
        self.rows = self._rows(self._kept(steps))

    @property
    def most_s(self) -> float:
        """Latency that the rows save together at most, added up."""
        return largest_saving([row.option for row in self.rows], self._setting.request.max_sites)

    def sets(
        self, goal_s: float, count: int, seconds: float, *, patient: bool = False
    ) -> tuple[list[RowSet], tuple[str, ...]]:
        """Time sets of replacements until enough of them reach a latency.

        A run that goes on times no other sets than before, once that was finished.

        Args:
            goal_s: Latency to reach.
            count: Different sets wanted that reach it.
            seconds: After which no other set is timed.
            patient: Whether time does not count until one reaches it.

        Returns:
            Up to `count` sets; or the one that comes nearest, if it saves anything, and what to say then.
        """
        setting, saving_s = self._setting, self._profile.whole.median_s - goal_s
        if saving_s <= 0:
            return [], ("The latency that was asked for is that of the original, or more.",)
        key = f"sets:{goal_s!r}:{count}"
        time_left = setting.clock(key, seconds)
        finished: int | None = setting.folder.journal.get(key)
        reached: list[RowSet] = []
        timed: list[tuple[MeasuredSet, RowSet]] = []

        def goes_on() -> bool:
            if finished is not None:
                return len(timed) < finished
            return (setting.time_left() if patient and not reached else time_left()) > 0

        waiting = self._sources(saving_s)
        while waiting and len(reached) < count:
            source = min(waiting, key=lambda one: (one.bred, shared(one.likely, reached)))
            waiting.remove(source)
            begin = len(timed)
            for one in self._timed(source, saving_s, goes_on):
                timed.append(one)
            enough = [(one, chosen) for one, chosen in timed[begin:] if one.enough]
            if enough:
                _, cheapest = min(enough, key=lambda pair: pair[0].loss)
                if cheapest not in reached:
                    reached.append(cheapest)
        if finished is None:
            setting.folder.journal.put(key, len(timed))
        if reached:
            return reached, ()
        missed = f"No set of replacements that was timed reaches the latency asked for, {goal_s:.4g} s."
        nearest = max((pair for pair in timed if pair[0].saved_s > 0), key=lambda pair: pair[0].saved_s, default=None)
        return [nearest[1]] if nearest else [], (missed,)

    def reaches(self, chosen: RowSet, goal_s: float) -> bool:
        """Whether a set has a latency, timed as a whole beside the original."""
        ratio = self._ratio(chosen)
        return ratio is not None and ratio * self._profile.whole.median_s <= goal_s

    def _sources(self, saving_s: float) -> list[_Source]:
        """All families of seeds, each of them, all rows, and what searches ranked alike.

        All rows in any case, the others where they save nearly as much as is wanted, added up.
        """
        limit = self._setting.request.max_sites
        seeds = tuple(row for row in self.rows if row.outcome.candidate.family)
        bred = tuple(row for row in self.rows if not row.outcome.candidate.family)
        sources = []
        for name, rows in [("all families", seeds), *_by_family(seeds), ("all", self.rows), *_by_family(bred)]:
            options = [row.option for row in rows]
            most_s = largest_saving(options, limit)
            if rows is self.rows or most_s >= REACH * saving_s:
                found = cheapest_set(options, min(saving_s, most_s), limit)
                likely = frozenset() if isinstance(found, Rejection) else frozenset(rows[i] for i in found)
                sources.append(_Source(name, rows, likely, bred=not set(rows).issubset(seeds)))
        return sources

    def _kept(self, steps: Sequence[Step]) -> list[list[_Kept]]:
        """For each kind of site the operators of families and up to `KEPT` of the front, spread over it, if faster."""
        kept = [_named(step) for step in steps]
        contests = [(step.sites, [one.outcome for one in own]) for step, own in zip(steps, kept, strict=True)]
        time_left = self._setting.clock("tune what was found", TUNE_SHARE * self._setting.time_left())
        timed = timed_tuned(self._setting, self._setting.model, contests, time_left)
        return [
            [replace(one, outcome=outcome) for one, outcome in zip(own, outcomes, strict=True) if is_faster(outcome)]
            for own, outcomes in zip(kept, timed, strict=True)
        ]

    def _rows(self, kept: Sequence[Sequence[_Kept]]) -> RowSet:
        """The operators at every site of their kind, but for those whose loss was not computed in time."""
        setting = self._setting
        finished = "table" in setting.folder.journal  # what was left out stays out: indices into rows are journalled
        time_left = setting.clock("losses", LOSS_SHARE * setting.time_left())
        rows = []
        total = sum(len(one.step.sites) for own in kept for one in own)
        with setting.progress.stage("what every replacement costs", total) as advance:
            for _, one in in_turn(kept):
                for k in range(len(one.step.sites)):
                    row = self._row(one, k, in_time=not finished and time_left() > 0)
                    rows += [row] if row else []
                    advance()
        if not finished:
            setting.folder.journal.put("table", True)
        if len(rows) < total:
            setting.progress.note(f"{total - len(rows)} of {total} replacements are left out: no time to fit them")
        return tuple(row for row in rows if row.option.loss < NO_NUMBER)

    def _row(self, kept: _Kept, k: int, *, in_time: bool) -> Row | None:
        setting, outcome, site = self._setting, kept.outcome, kept.step.sites[k]
        candidate = outcome.candidate
        key = f"loss:{setting.model_key}:{site.name}:{candidate.operator.key}"
        if key not in setting.folder.journal:
            if not in_time:
                return None
            judge = LossJudge(setting.model, site, setting.lessons)
            setting.folder.journal.put(key, judge(candidate.operator, (candidate.weights[k],)).drop)
        loss = setting.folder.journal.get(key)
        assert outcome.latency is not None
        assert outcome.original_latency is not None
        saved = 1 - ratio_in_turns(outcome.latency, outcome.original_latency, CANDIDATE_EFFORT.samples)
        option = Option(frozenset(site.nodes), saved * self._profile.sites[site.name].median_s, loss)
        setting.progress.detail(
            f"{site.name}: {candidate.lineage[-1]} saves {1e6 * option.saves_s:.1f} µs, loss {loss:.3g}"
        )
        judged = replace(outcome, judgement=Judgement(None, loss, ()))
        return Row(kept.step, kept.family, judged, site, candidate.weights[k], option)

    def _timed(
        self, source: _Source, saving_s: float, goes_on: Callable[[], bool]
    ) -> Iterator[tuple[MeasuredSet, RowSet]]:
        """Sets of different savings, timed as wholes until one hardly saves more than is wanted."""
        whole_s, rows = self._profile.whole.median_s, source.rows

        def measure(chosen: tuple[int, ...]) -> float | None:
            ratio = self._ratio(tuple(rows[i] for i in chosen)) if goes_on() else None
            return None if ratio is None else whole_s * (1 - ratio)

        options, limit = [row.option for row in rows], self._setting.request.max_sites
        for one in measured_sets(options, saving_s, limit, measure, self._overestimate):
            self._setting.progress.note(
                f"{source.name}: {len(one.chosen)} replacements: {whole_s / (whole_s - one.saved_s):.2f}x measured, "
                f"{whole_s / (whole_s - one.added_s):.2f}x added up"
            )
            self._overestimate = one.overestimate
            yield one, tuple(rows[i] for i in one.chosen)

    def _ratio(self, chosen: RowSet) -> float | None:
        """Latency of the model with these replacements, untrained, over the original's; `None` if it does not run."""
        setting = self._setting
        model = splice(setting.model, tuple(row.replacement for row in chosen))
        key = f"whole:{graph_key(model)}"
        if key not in setting.folder.journal:
            with setting.progress.stage("time the whole"):
                measured = setting.workbench.measure_beside(setting.model, model)
            if isinstance(measured, Rejection):
                setting.progress.note(f"{len(chosen)} replacements do not run together: {measured.reason}")
                setting.folder.journal.put(key, None)
            else:
                setting.folder.journal.put(key, [latency.to_json() for latency in measured])
        if (forms := setting.folder.journal.get(key)) is None:
            return None
        original, adapted = map(Measurement.from_json, forms)
        return ratio_in_turns(adapted, original, WHOLE_EFFORT.samples)


def _named(step: Step) -> list[_Kept]:
    """The relatives of a kind of site, and of what its search found up to `KEPT`, spread over the front.

    Not the original with schedule hints: what enters the table is tuned, and so is the original.
    """
    original = step.sites[0].operator
    bred = [outcome for outcome in step.front.best if not outcome.candidate.family]
    front = [outcome for outcome in bred if not is_hinted(outcome.candidate.operator, original)]
    if len(front) > KEPT:
        front = [front[round(i * (len(front) - 1) / (KEPT - 1))] for i in range(KEPT)]
    relatives = [_Kept(step, str(outcome.candidate.family), outcome) for outcome in step.relatives]
    return [*relatives, *(_Kept(step, f"rank {rank}", outcome) for rank, outcome in enumerate(front))]


def shared(one: Collection[T], others: Iterable[Collection[T]]) -> float:
    """Largest share of a collection's members that is in one of the others; 1 of an empty one."""
    return max((len(set(one).intersection(other)) / len(one) for other in others), default=0.0) if one else 1.0


def _by_family(rows: RowSet) -> Iterator[tuple[str, RowSet]]:
    for family in dict.fromkeys(row.family for row in rows):
        yield family, tuple(row for row in rows if row.family == family)
