"""The adaptation loop: select the worst operator, search its replacement, put it in, again.

    until nothing is left to replace, enough is replaced, or the time is over:
        profile the model as it is now          (on the device)
        select the worst site and those like it (METHOD 1.1)
        search, fit, fine-tune                  (METHOD 1.3, 1.4)
        splice the best into the model
        recover: train all replacements together when much of the allowance is used

Every step is a function of the seed and of what the journal holds, so a run that was killed replays its history and
goes on; whatever took time to find out is in the journal or in a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gos_adapt.cost.analytical import Roofline
from gos_adapt.finetune.capture import capture
from gos_adapt.finetune.distil import AccuracyJudge, Lessons, Training, prepare_lessons, recover, score
from gos_adapt.finetune.equivalence import TOLERANCE, EquivalenceJudge
from gos_adapt.finetune.fit import FitSettings, fit
from gos_adapt.model.model import Replacement
from gos_adapt.model.sites import find_sites, overlaps
from gos_adapt.model.splice import splice
from gos_adapt.operators.torch_form import TorchOperator
from gos_adapt.profiling.profile import Profile
from gos_adapt.profiling.select import Memory, Selection, SiteCost, amdahl_bound, select
from gos_adapt.search.cascade import Context, Settings
from gos_adapt.search.objectives.latency import latency_change_s
from gos_adapt.search.search import choose, search

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gos_adapt.model.model import Array, Model, Site
    from gos_adapt.operators.graph import OperatorGraph
    from gos_adapt.progress import Progress
    from gos_adapt.run_folder import RunFolder
    from gos_adapt.search.candidate import Outcome, Weights
    from gos_adapt.search.search import Front
    from gos_adapt.task import Score, Task
    from gos_adapt.workbench import Workbench

FIT_SAMPLES = 256
LESSONS = 8192
"""Training samples that distillation draws from: more would cost more to prepare than they add in so few steps."""
SELECTION = 2048
"""Samples that candidates are scored on: the paired difference of two models on so many is known to a few tenths."""
WORTH = 1.01
"""Speed-up that a group must promise at best; less cannot be told from noise."""
RANDOM_SAMPLES = 16
RECOVER_ABOVE = 0.5
"""Share of the allowance that may be used before all replacements are trained together."""
RECOVERY = Training(steps=200)
SEARCH = Settings(generations=6, judgements=2, prediction_slack=1.0, max_fit_error=0.8)
"""For minutes on two cores: the thesis breeds 50 generations in an hour on a GPU."""
QUICK = FitSettings(steps=0)
QUICK_SAMPLES = 64
"""For the cascade: the closed form on a quarter of the samples ranks candidates well enough; the judge fits in full."""
HOPELESS = 0.05
"""Drop, in the metric's terms, that a short training does not mend; twice the allowance where that is more."""
ENOUGH = 0.25
"""Share of the allowance below which a candidate need not be trained to be judged."""


@dataclass(frozen=True)
class Request:
    """What the loop is asked for.

    Attributes:
        epsilon: Loss of the metric that is acceptable; unused without a task.
        max_sites: Replace at most this many.
        group_limit: N_o, most alike sites treated together.
        seed: Of everything random.
        settings: Of each search.
    """

    epsilon: float
    max_sites: int
    seed: int
    group_limit: int = 2
    settings: Settings = field(default_factory=lambda: SEARCH)


@dataclass(frozen=True, eq=False)
class Step:
    """One turn of the loop.

    Attributes:
        sites: The group.
        selection: Why these, and why not the others.
        front: What the search found.
        chosen: What went into the model; `None` when nothing was both feasible and faster.
    """

    sites: tuple[Site, ...]
    selection: Selection
    front: Front
    chosen: Outcome | None


@dataclass(frozen=True, eq=False)
class Adapted:
    """What the loop did.

    Attributes:
        model: With all replacements.
        replacements: In the order they were found.
        steps: All turns, also those without effect.
        profile: Of the original.
        sites: Of the original.
        selection: The last selection: for every site why it stayed.
    """

    model: Model
    replacements: tuple[Replacement, ...]
    steps: tuple[Step, ...]
    profile: Profile
    sites: tuple[Site, ...]
    selection: Selection


class Loop:
    """The adaptation of one model on one device; `run` is the algorithm."""

    def __init__(
        self,
        model: Model,
        task: Task | None,
        request: Request,
        workbench: Workbench,
        folder: RunFolder,
        progress: Progress,
        time_left: Callable[[], float],
        keep: Callable[[Model, tuple[Replacement, ...]], None],
    ) -> None:
        self.model, self.request = model, request
        self.task = task and _shuffled(task, request.seed)
        self.workbench, self.folder, self.progress = workbench, folder, progress
        self.time_left, self.keep = time_left, keep

    def run(self) -> Adapted:
        """Adapt; return what was done."""
        original_sites = find_sites(self.model)
        profile = first_profile = self.profile(self.model, original_sites, "original")
        replacements: tuple[Replacement, ...] = ()
        steps: list[Step] = []
        current, selected = self.model, set[str]()
        while True:
            sites = self._eligible(current)
            selection = self._select(current, sites, profile, selected, replacements)
            replayed = self.folder.journal.get(f"step:{len(steps)}")  # generations that step took, if it was finished
            if not selection.group:
                break
            if replayed is None and self.time_left() <= 0:
                selection = _none_selected(selection, "not selected: the time was over")
                break
            if selection.bound < WORTH:
                selection = _none_selected(selection, f"not worth replacing: at most {selection.bound:.3f}x")
                break
            group = tuple(site for site in sites if site.name in selection.group)
            step = self._step(current, group, selection, profile, len(steps), replayed)
            steps.append(step)
            selected.update(selection.group)
            if step.chosen is None:
                continue
            replacements += _replacements(step)
            replacements = self._recover(replacements, step, len(steps))
            current = splice(self.model, replacements)
            self.keep(current, replacements)
            self._announce(replacements, step)
            if len(replacements) >= self.request.max_sites:
                selection = _none_selected(selection, "not selected: enough sites are replaced")
                break
            profile = self.profile(current, find_sites(current), f"after step {len(steps)}")
        self.folder.journal.mark()  # a process that goes on from here knows how long this one searched
        return Adapted(current, replacements, tuple(steps), first_profile, original_sites, selection)

    def profile(self, model: Model, sites: Sequence[Site], when: str) -> Profile:
        """Profile a model, or read from the journal what was found before."""
        key = f"profile:{when}:{_graph_key(model)}"
        if key not in self.folder.journal:
            with self.progress.stage(f"profile, {when}"):
                self.folder.journal.put(key, self.workbench.profile(model, sites).to_json())
        return Profile.from_json(self.folder.journal.get(key))

    @cached_property
    def lessons(self) -> Lessons:
        """Training samples with the original's outputs."""
        assert self.task is not None
        with self.progress.stage("teacher outputs"):
            return prepare_lessons(self.model, self.task, min(LESSONS, self.task.training.n))

    @cached_property
    def original_score(self) -> Score:
        """The original on the selection split, on the path that scores candidates."""
        assert self.task is not None
        with self.progress.stage("score of the original"):
            return score(self.model, self.task.selection, self.task.metric)

    def _eligible(self, current: Model) -> tuple[Site, ...]:
        """Sites that the original has too: the inside of a replacement is not replaced again.

        None for a model of several inputs, or of integers: fitting feeds one tensor of floats.
        """
        if [spec.dtype for spec in self.model.inputs] != ["float32"]:
            return ()
        known = {name for node in self.model.proto.graph.node for name in node.output}
        return tuple(site for site in find_sites(current) if known.issuperset(site.nodes))

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
        limit = min(self.request.group_limit, self.request.max_sites - len(replacements))
        selection = select(
            costs,
            Memory(model_bytes(current), self.workbench.device.memory_bytes),
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
        replayed: int | None,
    ) -> Step:
        names = ", ".join(site.name for site in group)
        self.progress.note(f"{group[0].kind} {names}: at most {selection.bound:.2f}x if it cost nothing")
        share_s = self._share()
        later_s = self.time_left() - share_s if math.isfinite(share_s) else 0.0

        def time_left() -> float:
            return 0.0 if replayed is not None else self.time_left() - later_s

        settings = replace(self.request.settings, epsilon=self.request.epsilon if self.task else TOLERANCE)
        context = self._context(current, group, profile, time_left)
        with self.progress.stage(f"search {number + 1} ({group[0].kind})", settings.generations) as advance:
            done = 0

            def generation(_number: int, _front: Front) -> None:
                nonlocal done
                done += 1
                advance()

            front = search(context, settings, self.request.seed + number, generation, replay=replayed)
        if replayed is None:
            self.folder.journal.put(f"step:{number}", done)
        chosen = choose(front)
        stopped = ", ".join(f"{count} {name}" for name, count in front.stopped.items() if count)
        self.progress.detail(f"{len(front.outcomes)} candidates; stopped: {stopped or 'none'}")
        if chosen is None:
            self.progress.note("nothing both good enough and faster was found here")
        else:
            self.progress.note(
                f"replaced by {chosen.candidate.lineage[0]} ({' then '.join(chosen.candidate.lineage[1:])})"
            )
        return Step(group, selection, front, chosen)

    def _share(self) -> float:
        """Time for the next search: a third of what is left, so that later sites have their turn."""
        return self.time_left() / 3 if math.isfinite(self.time_left()) else math.inf

    def _context(
        self, current: Model, group: tuple[Site, ...], profile: Profile, time_left: Callable[[], float]
    ) -> Context:
        site = group[0]
        samples = self._samples()
        material = capture(current, [site], samples[:QUICK_SAMPLES])[site.name]
        teacher = TorchOperator(site.operator, site.weights)

        def fit_error(operator: OperatorGraph, weights: Weights) -> float:
            return fit(operator, weights, teacher, material, QUICK).relative_error

        return Context(
            sites=group,
            predict=Roofline().calibrated(site.operator, profile.sites[site.name].median_s).predict,
            fit_error=fit_error,
            measure=self.workbench.measure_operators,
            judge=_Late(partial(self._judge, current, group, samples, time_left)),
            folder=self.folder,
            model_key=_graph_key(current),
            time_left=time_left,
        )

    def _judge(self, current: Model, group: Sequence[Site], samples: Array, time_left: Callable[[], float]) -> Any:
        if self.task is None:
            return EquivalenceJudge(current, group, samples, np.random.default_rng(self.request.seed))
        return AccuracyJudge(
            current,
            group,
            self.lessons,
            self.original_score,
            hopeless=max(HOPELESS, 2 * self.request.epsilon),
            enough=ENOUGH * self.request.epsilon,
            time_left=time_left,
        )

    def _samples(self) -> Array:
        """Material for fitting: training samples, or random inputs when there is no task."""
        if self.task is not None:
            inputs, _ = self.task.training.part(slice(0, FIT_SAMPLES)).arrays()
            return inputs
        rng = np.random.default_rng(self.request.seed)
        return rng.standard_normal(self.model.inputs[0].at_batch(RANDOM_SAMPLES)).astype(np.float32)

    def _recover(self, replacements: tuple[Replacement, ...], step: Step, number: int) -> tuple[Replacement, ...]:
        """Train all replacements together when the last one used much of the allowance; keep the result in a file."""
        assert step.chosen is not None
        assert step.chosen.judgement is not None
        if self.task is None or step.chosen.judgement.drop < RECOVER_ABOVE * self.request.epsilon:
            return replacements
        file = f"recovered-{number}.safetensors"
        key = f"recovered:{number}:{_graph_key(splice(self.model, replacements))}"
        if key not in self.folder.journal:
            if self.time_left() <= 0:
                return replacements
            with self.progress.stage("recover", RECOVERY.steps) as advance:
                recovered = recover(
                    self.model,
                    find_sites(self.model),
                    replacements,
                    self.lessons,
                    RECOVERY,
                    seed=self.request.seed,
                    time_left=self.time_left,
                    progress=lambda _done, _all: advance(),
                )
            arrays = {f"{i}.{k}": w for i, r in enumerate(recovered.replacements) for k, w in enumerate(r.weights)}
            self.folder.save_arrays(file, arrays)
            self.folder.journal.put(key, recovered.score.value)
        arrays = self.folder.require_arrays(file)
        return tuple(
            replace(r, weights=tuple(arrays[f"{i}.{k}"] for k in range(len(r.weights))))
            for i, r in enumerate(replacements)
        )

    def _announce(self, replacements: Sequence[Replacement], step: Step) -> None:
        assert step.chosen is not None
        assert step.chosen.judgement is not None
        saved_s = -latency_change_s(step.chosen)
        kept = "" if self.task is None else f", {step.chosen.judgement.drop:.4f} of {self.task.metric.name} lost"
        self.progress.best(f"{len(replacements)} sites replaced, the last saves {1e6 * saved_s:.1f} µs{kept}")


class _Late:
    """Calls what `make` returns, made at the first call: a judge is costly, and a replayed search never needs it."""

    def __init__(self, make: Callable[[], Callable[..., Any]]) -> None:
        self._make = make

    @cached_property
    def _call(self) -> Callable[..., Any]:
        return self._make()

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


def _shuffled(task: Task, seed: int) -> Task:
    """Order training and selection by chance, so that their first samples stand for all; bound the selection."""
    rng = np.random.default_rng(seed)
    selection = task.selection.part(rng.permutation(task.selection.n)[:SELECTION])
    return replace(task, training=task.training.part(rng.permutation(task.training.n)), selection=selection)


def _none_selected(selection: Selection, why: str) -> Selection:
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
    assert step.chosen is not None
    assert step.chosen.judgement is not None
    candidate = step.chosen.candidate
    return tuple(
        Replacement(site.name, candidate.operator, weights, candidate.lineage)
        for site, weights in zip(step.sites, step.chosen.judgement.weights, strict=True)
    )


def _graph_key(model: Model) -> str:
    """Content hash of the canonical graph: of the model as it is now."""
    return replace(model, original=model.proto).key
