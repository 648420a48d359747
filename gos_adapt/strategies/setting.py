"""What every strategy works with: the model, its device, its task, and how to profile, search and recover there.

Every result that took time is in the run folder, under a key that names what it depends on, so a run that was killed
replays its history and goes on.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gos_adapt.cost.analytical import Roofline
from gos_adapt.finetune.capture import capture
from gos_adapt.finetune.distil import Lessons, prepare_lessons, score
from gos_adapt.finetune.fit import CLOSED_FORM, fit
from gos_adapt.finetune.recovery import (
    STEPS,
    Recovered,
    Recovery,
    Teacher,
    recover,
    seconds_per_step,
    with_retrained,
)
from gos_adapt.model.sites import find_sites
from gos_adapt.model.splice import splice
from gos_adapt.operators.torch_form import TorchOperator
from gos_adapt.profiling.profile import Profile
from gos_adapt.run_folder import arrays_file
from gos_adapt.search.cascade import Context, Settings
from gos_adapt.search.search import search
from gos_adapt.task import Score, is_acceptable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gos_adapt.finetune.recovery import State
    from gos_adapt.model.model import Array, Model, Replacement, Site
    from gos_adapt.operators.graph import OperatorGraph
    from gos_adapt.profiling.select import Selection
    from gos_adapt.progress import Progress
    from gos_adapt.run_folder import RunFolder
    from gos_adapt.search.candidate import Judgement, Outcome, Weights
    from gos_adapt.search.search import Front
    from gos_adapt.task import Task
    from gos_adapt.workbench import Workbench

ADDED = {"parameters": "parameters", "memory": "memory (bytes)", "energy": "energy (J)"}
"""Objectives that a user may add, by the names in `config`."""
FIT_SAMPLES, CASCADE_SAMPLES = 256, 64
"""Material for fitting; and for the cascade, which fits in closed form: enough to tell hopeless candidates."""
SELECTION = 2048
"""Samples that candidates are scored on: the paired difference of two models on so many is known to a few tenths."""
RANDOM_SAMPLES = 16
SEARCH = Settings(generations=6, judgements=2, prediction_slack=1.0, max_fit_error=0.8)
"""For minutes on two cores: the thesis breeds 50 generations in an hour on a GPU."""
WORTH = 1.01
"""Speed-up that a kind of site must promise at best; less cannot be told from noise."""


@dataclass(frozen=True)
class Request:
    """What a strategy is asked for.

    Attributes:
        epsilon: Loss of the metric that is acceptable; unused without a task.
        max_sites: Replace at most this many; `None` for any number.
        seed: Of everything random.
        target_latency_s: Latency of the whole model that must be reached; `None` for as fast as epsilon allows.
        speed_up: Likewise, as a factor on the original's latency.
        train_all: Whether recovery trains the layers too that keep their operator.
        also_minimise: Names in `ADDED`: objectives of every search beside the strategy's own.
        group_limit: N_o, most alike sites the iterative strategy treats together.
        settings: Of each search.
    """

    epsilon: float
    max_sites: int | None
    seed: int
    target_latency_s: float | None = None
    speed_up: float | None = None
    train_all: bool = False
    also_minimise: tuple[str, ...] = ()
    group_limit: int = 2
    settings: Settings = field(default_factory=lambda: SEARCH)

    def goal_s(self, original_s: float) -> float | None:
        """Latency to reach, given the original's; `None` where none was asked for."""
        return self.target_latency_s if self.speed_up is None else original_s / self.speed_up


@dataclass(frozen=True, eq=False)
class Step:
    """One search.

    Attributes:
        sites: The group.
        selection: Why these, and why not the others.
        front: What the search found.
        chosen: What went into the model, by site; empty when nothing was both good enough and faster.
        relatives: Seeds of families, measured on guessed schedules, whatever the search made of them.
    """

    sites: tuple[Site, ...]
    selection: Selection
    front: Front
    chosen: Mapping[str, Outcome]
    relatives: tuple[Outcome, ...] = ()


@dataclass(frozen=True, eq=False)
class Adapted:
    """What a strategy did.

    Attributes:
        model: With all replacements.
        replacements: One a site.
        steps: All searches, also those without effect.
        sites: Of the original.
        selection: The last selection: for every site why it stayed.
        notes: What else a reader must know, one sentence each.
    """

    model: Model
    replacements: tuple[Replacement, ...]
    steps: tuple[Step, ...]
    sites: tuple[Site, ...]
    selection: Selection
    notes: tuple[str, ...] = ()


class Setting:
    """One model on one device with its task; strategies are built on it.

    Attributes:
        LESSONS: Training samples that candidates are judged and briefly trained with.
    """

    LESSONS: ClassVar[int]

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

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Of the original."""
        return find_sites(self.model)

    @cached_property
    def model_key(self) -> str:
        """Content hash of the original's graph."""
        return graph_key(self.model)

    def profiles(self, when: str, *models: Model) -> tuple[Profile, ...]:
        """Profile models, several of them in turns, or read from the journal what was found before."""
        key = f"profile:{when}:{':'.join(map(graph_key, models))}"
        if key not in self.folder.journal:
            with self.progress.stage(f"profile, {when}"):
                found = self.workbench.profiles([(model, find_sites(model)) for model in models])
                self.folder.journal.put(key, [profile.to_json() for profile in found])
        return tuple(map(Profile.from_json, self.folder.journal.get(key)))

    @cached_property
    def lessons(self) -> Lessons:
        """Training samples with the original's outputs."""
        assert self.task is not None
        with self.progress.stage("teacher outputs"):
            return prepare_lessons(self.model, self.task, min(self.LESSONS, self.task.training.n))

    @cached_property
    def original_score(self) -> Score:
        """The original on the selection split, on the path that scores candidates."""
        assert self.task is not None
        with self.progress.stage("score of the original"):
            return score(self.model, self.task.selection, self.task.metric)

    def eligible(self, current: Model) -> tuple[Site, ...]:
        """Sites that the original has too: the inside of a replacement is not replaced again.

        None for a model of several inputs, or of integers: fitting feeds one tensor of floats.
        """
        if [spec.dtype for spec in self.model.inputs] != ["float32"]:
            return ()
        known = {site.name: site.nodes for site in self.sites}
        return tuple(site for site in find_sites(current) if known.get(site.name) == site.nodes)

    def context(
        self,
        current: Model,
        group: tuple[Site, ...],
        profile: Profile,
        judge: Callable[[], Callable[[OperatorGraph, tuple[Weights, ...]], Judgement]],
        time_left: Callable[[], float],
    ) -> Context:
        """Return what a search for `group` needs; `judge` makes its judge when the first candidate comes that far."""
        site = group[0]

        def fitter() -> Callable[[OperatorGraph, Weights], float]:
            material = capture(current, [site], self.samples[:CASCADE_SAMPLES])[site.name]
            teacher = TorchOperator(site.operator, site.weights)
            return lambda operator, weights: fit(operator, weights, teacher, material, CLOSED_FORM).relative_error

        return Context(
            sites=group,
            predict=Roofline().calibrated(site.operator, profile.sites[site.name].median_s).predict,
            fit_error=_Late(fitter),
            measure=self.workbench.measure_operators,
            judge=_Late(judge),
            folder=self.folder,
            model_key=graph_key(current),
            time_left=time_left,
        )

    def is_finished(self, number: int) -> bool:
        """Whether search `number` of this run is finished."""
        return _search_name(number) in self.folder.journal

    def searched(self, context: Context, settings: Settings, number: int, name: str) -> Front:
        """Search, or repeat a search that is finished as it was.

        Args:
            context: Its sites and what evaluates candidates.
            settings: Of the search.
            number: Of the search in this run; its seed follows.
            name: Of the stage.
        """
        added = (ADDED[name] for name in self.request.also_minimise)
        settings = replace(settings, objectives=tuple(dict.fromkeys((*settings.objectives, *added))))
        with self.progress.stage(name, settings.generations) as advance:
            seed = self.request.seed + number
            front = search(context, settings, seed, lambda _number, _front: advance(), name=_search_name(number))
        self.progress.detail(front.described)
        return front

    @cached_property
    def samples(self) -> Array:
        """Material for fitting: training samples, or random inputs when there is no task."""
        if self.task is not None:
            inputs, _ = self.task.training.part(slice(0, FIT_SAMPLES)).arrays()
            return inputs
        rng = np.random.default_rng(self.request.seed)
        return rng.standard_normal(self.model.inputs[0].at_batch(RANDOM_SAMPLES)).astype(np.float32)

    def recover(
        self,
        replacements: tuple[Replacement, ...],
        name: str,
        *,
        seconds: float = math.inf,
        steps: float = math.inf,
        train_all: bool = False,
    ) -> Recovered:
        """Train all replacements together, or read from a file what was trained before.

        Args:
            replacements: Of the original's sites.
            name: Of this recovery: a run has each once for a set of replacements.
            seconds: End it; they count from its first beginning in the run.
            steps: End it.
            train_all: Whether the layers that keep their operator learn too.
        """
        assert self.task is not None
        if train_all:
            replacements = with_retrained(self.model, replacements)
        key = f"recovered:{name}:{graph_key(splice(self.model, replacements))}"
        file, unfinished = arrays_file("recovered", key), arrays_file("recovering", key)
        if key not in self.folder.journal:
            state = self.folder.load_arrays(unfinished)
            start = float(state["share"]) if state else 0.0
            clock = _Clock(self.clock(key, seconds)(), steps, start)

            def keep(state: State) -> None:
                arrays = {**state, "share": np.array(clock.share(int(state[STEPS])))}
                self.folder.save_arrays(unfinished, arrays)

            with self.progress.stage("recover", 100) as advance:
                recovered = recover(
                    self.model,
                    replacements,
                    self.task,
                    Recovery(),
                    clock.share,
                    teacher=self._teacher,
                    resume=state,
                    keep=keep,
                    progress=_percent(advance),
                )
            self.save_weights(file, [replacement.weights for replacement in recovered.replacements])
            found = recovered.score
            numbers = [x if math.isfinite(x) else None for x in (recovered.loss, found.value)]
            self.folder.journal.put(key, [*numbers, found.n, recovered.steps])
            self.folder.remove(unfinished)
        loss, value, n, taken = self.folder.journal.get(key)
        loss, value = math.inf if loss is None else loss, math.nan if value is None else value
        trained = self.with_weights(file, replacements)
        scored = Score(self.task.metric, value, n, self.task.selection.name)
        return Recovered(splice(self.model, trained), trained, loss, scored, taken)

    @property
    def step_s(self) -> float:
        """Seconds that a step of recovery takes when all layers are trained, so at most; timed once in a run."""
        if "step" not in self.folder.journal:
            with self.progress.stage("time a training step"):
                self.folder.journal.put("step", seconds_per_step(self.model, self._teacher))
            self.progress.detail(f"{self.folder.journal.get('step'):.3g} s")
        seconds: float = self.folder.journal.get("step")
        return seconds

    def clock(self, stage: str, seconds: float) -> Callable[[], float]:
        """Seconds left of a stage, also of the run; see `Journal.clock`."""
        stage_left = self.folder.journal.clock(stage, seconds)
        return lambda: min(self.time_left(), stage_left())

    @cached_property
    def _teacher(self) -> Teacher:
        assert self.task is not None
        return Teacher(self.model, self.task, self.request.seed)

    def save_weights(self, file: str, weights: Sequence[Sequence[Array]]) -> None:
        """Write the weights of several operators into one file of the run."""
        self.folder.save_arrays(file, {f"{i}.{k}": w for i, own in enumerate(weights) for k, w in enumerate(own)})

    def with_weights(self, file: str, replacements: Sequence[Replacement]) -> tuple[Replacement, ...]:
        """Return the replacements with the weights that `save_weights` wrote for them, in the same order."""
        arrays = self.folder.require_arrays(file)
        return tuple(
            replace(r, weights=tuple(arrays[f"{i}.{k}"] for k in range(len(r.weights))))
            for i, r in enumerate(replacements)
        )

    def passes(self, count: float) -> float:
        """Steps that `count` passes over the training split take."""
        assert self.task is not None
        return count * self.task.full_batches

    def drop(self, score: Score) -> float:
        """What a model of this score lost, to be compared with epsilon; infinite if it computes what is no number."""
        assert self.task is not None
        lost = self.task.metric.drop(self.original_score.value, score.value)
        return math.inf if math.isnan(lost) else lost

    def keeps_accuracy(self, recovered: Recovered) -> bool:
        """Whether a recovery costs at most epsilon: outputs nearer to the original's may cost more of the metric."""
        return is_acceptable(self.drop(recovered.score), self.request.epsilon)


class _Clock:
    """How much of a training is done: of its time, or of its steps, whichever is further.

    Args:
        seconds: That are left.
        steps: In all.
        start: Share that was done before.
    """

    def __init__(self, seconds: float, steps: float, start: float) -> None:
        self._seconds, self._steps, self._start = seconds, steps, start
        self._begin = time.monotonic()

    def share(self, steps: int) -> float:
        """In [0, 1]."""
        used = (time.monotonic() - self._begin) / self._seconds if self._seconds > 0 else 1.0
        return min(1.0, max(self._start + (1 - self._start) * used, steps / self._steps))


def _percent(advance: Callable[[], None]) -> Callable[[float], None]:
    """Advance a stage of 100 steps as a share grows."""
    done = 0

    def progress(share: float) -> None:
        nonlocal done
        while done < int(100 * share):
            advance()
            done += 1

    return progress


class _Late:
    """Calls what `make` returns, made at the first call: it is costly, and a replayed search never needs it."""

    def __init__(self, make: Callable[[], Callable[..., Any]]) -> None:
        self._make = make

    @cached_property
    def _call(self) -> Callable[..., Any]:
        return self._make()

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


def _search_name(number: int) -> str:
    return f"step:{number}"


def _shuffled(task: Task, seed: int) -> Task:
    """Order training and selection by chance, so that their first samples stand for all; bound the selection."""
    rng = np.random.default_rng(seed)
    selection = task.selection.part(rng.permutation(task.selection.n)[:SELECTION])
    return replace(task, training=task.training.part(rng.permutation(task.training.n)), selection=selection)


def graph_key(model: Model) -> str:
    """Content hash of the canonical graph: of the model as it is now."""
    return replace(model, original=model.proto).key
