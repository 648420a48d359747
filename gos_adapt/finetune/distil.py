"""Train replacements inside the model against the original model's outputs, and score what comes out.

The teacher is the original model: its outputs are computed once for each training sample. Where the task has labels,
the task's loss is added. Only the replaced operators are trained; `recovery` trains more, and for longer.

Reference: thesis 4.3. Deviations: the original teaches, too; the learning rate falls along a cosine to zero, because
the last of a few dozen steps must settle; gradients are clipped, because factors from a closed form can be badly
scaled.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gos_adapt.finetune.adapted import BATCH, AdaptedModel, CutSamples
from gos_adapt.finetune.capture import Activations, sample_limit
from gos_adapt.finetune.fit import DEFAULT, THOROUGH, FitSettings, fit
from gos_adapt.finetune.learnt_output import learnt_output
from gos_adapt.operators.torch_form import TorchOperator
from gos_adapt.search.candidate import NO_NUMBER, Judgement
from gos_adapt.task import Score

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gos_adapt.model.model import Array, Model, Site
    from gos_adapt.operators.graph import OperatorGraph
    from gos_adapt.task import Metric, Split, Task

MAX_GRADIENT_NORM = 10.0
GLANCE = 256
"""Samples that tell a hopeless candidate from one that deserves a closer look."""


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        steps: Of the optimiser.
        learning_rate: At its peak; thesis 4.3.
        momentum: Thesis 4.3.
        weight_decay: Thesis 4.3.
        label_weight: Of the task's loss beside the distillation loss.
    """

    steps: int = 60
    learning_rate: float = 0.003
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Lessons:
    """Training samples with the original model's outputs.

    Attributes:
        task: Loss, temperature, batch.
        samples: Of the training split.
        teacher: ``(n, ...)``, of the original model what `learnt_output` names.
    """

    task: Task
    samples: Split
    teacher: Tensor


def prepare_lessons(original: Model, task: Task, n: int) -> Lessons:
    """Compute the original model's outputs for the first `n` training samples."""
    samples = task.training.part(slice(0, n))
    model = AdaptedModel(original, (), [learnt_output(original, task)])
    with torch.no_grad():
        batches = [model(model.at_first_cut(torch.from_numpy(x)), ()) for x, _ in samples.batches(BATCH)]
    return Lessons(task, samples, torch.cat(batches))


def score(model: Model, split: Split, metric: Metric) -> Score:
    """Score a model in torch: the path on which candidates are scored too."""
    adapted = AdaptedModel(model, ())
    return _score(adapted, (), _cut_samples(adapted, split), split, metric)


class AccuracyJudge:
    """Judges candidates for one group of sites of one model by what they cost the task.

    1. Fit the operator quickly to every site in model order, each on what it reads behind the replacements before it,
       and score it on a few samples. A drop of twice `hopeless` or more is final: nothing that follows mends that.
    2. Fit thoroughly and score. A drop that a short training cannot mend (from `hopeless` on; it mends a point or so)
       or need not mend (up to `enough`) is final.
    3. Train the replaced operators, score again; keep the better.

    Attributes:
        hopeless: Drop, in the metric's terms.
        enough: Likewise.
    """

    def __init__(
        self,
        model: Model,
        sites: Sequence[Site],
        lessons: Lessons,
        original_score: Score,
        *,
        training: Training = Training(),
        fitting: FitSettings = THOROUGH,
        fit_samples: int = 512,
        hopeless: float = 0.05,
        enough: float = 0.0,
        time_left: Callable[[], float] = lambda: float("inf"),
    ) -> None:
        self._adapted = AdaptedModel(model, sites, [learnt_output(model, lessons.task)])
        names = [site.name for site in sites]
        self._order = [names.index(site.name) for site in self._adapted.sites]
        self._lessons = lessons
        self._original_score = original_score
        self._training = training
        self._fitting = fitting
        self._fit_samples = min(fit_samples, lessons.samples.n)
        self.hopeless, self.enough = hopeless, enough
        self._time_left = time_left
        self._selection = _cut_samples(self._adapted, lessons.task.selection)
        self._taught = _cut_samples(self._adapted, lessons.samples)

    def __call__(self, operator: OperatorGraph, weights: tuple[tuple[Array, ...], ...]) -> Judgement:
        """Return the judgement of `operator` at all sites; `weights` (one tuple a site) are where fitting starts."""
        initial, same = [weights[k] for k in self._order], [operator] * len(self._order)
        operators = fit_in_order(self._adapted, self._taught[slice(0, GLANCE)], same, initial, DEFAULT)
        glance = self._judgement(operators, at_a_glance=True)
        if glance.drop >= 2 * self.hopeless:
            return glance
        start = self._taught[slice(0, self._fit_samples)]
        initial = [fitted.weights() for fitted in operators]
        operators = fit_in_order(self._adapted, start, same, initial, self._fitting)
        before = self._judgement(operators)
        if not self.enough < before.drop < self.hopeless:
            return before
        train(
            self._adapted,
            operators,
            self._taught,
            self._lessons,
            self._training,
            seed=int(operator.key, 16),
            time_left=self._time_left,
        )
        return min(self._judgement(operators), before, key=lambda judgement: judgement.drop)

    def _judgement(self, operators: Sequence[TorchOperator], *, at_a_glance: bool = False) -> Judgement:
        """Score on the selection split, or its first samples."""
        task, limit = self._lessons.task, GLANCE if at_a_glance else None
        value = _score(self._adapted, operators, self._selection, task.selection, task.metric, limit).value
        original = self._original_at_a_glance if at_a_glance else self._original_score.value
        weights = tuple(operators[self._order.index(k)].weights() for k in range(len(operators)))
        if not np.isfinite(value):
            return Judgement(None, NO_NUMBER, weights)
        return Judgement(value, task.metric.drop(original, value), weights)

    @cached_property
    def _original_at_a_glance(self) -> float:
        """Score of the original on the same first samples: few differ much from all."""
        own = [TorchOperator(site.operator, site.weights) for site in self._adapted.sites]
        task = self._lessons.task
        return _score(self._adapted, own, self._selection, task.selection, task.metric, GLANCE).value


def fit_in_order(
    adapted: AdaptedModel,
    start: dict[str, Tensor],
    operators: Sequence[OperatorGraph],
    initial: Sequence[Sequence[Array]],
    settings: FitSettings = DEFAULT,
) -> list[TorchOperator]:
    """Fit an operator to every site in model order, each knowing the error of those before it.

    Args:
        adapted: The model and its sites.
        start: Tensors at the first cut for the samples to fit on.
        operators: One a site, in model order.
        initial: Weights to start from, one tuple a site, in model order.
        settings: Of the fits.
    """
    adapted_tensors = original_tensors = start
    fitted = []
    with torch.no_grad():
        for k, (site, operator) in enumerate(zip(adapted.sites, operators, strict=True)):
            teacher = TorchOperator(site.operator, site.weights)
            limit = sample_limit(site)
            inputs, teacher_inputs = adapted_tensors[site.input], original_tensors[site.input]
            with torch.enable_grad():
                found = fit(
                    operator, initial[k], teacher, Activations(inputs[:limit], teacher_inputs[:limit]), settings
                )
            fitted.append(TorchOperator(operator, found.weights))
            adapted_tensors = adapted.pass_site(adapted_tensors, k, fitted[k](inputs))
            original_tensors = adapted.pass_site(original_tensors, k, teacher(teacher_inputs))
    return fitted


def train(
    adapted: AdaptedModel,
    operators: Sequence[TorchOperator],
    taught: CutSamples,
    lessons: Lessons,
    settings: Training,
    *,
    seed: int,
    time_left: Callable[[], float] = lambda: float("inf"),
) -> None:
    """Train operators in place; the rest of the model stays as it is.

    Deterministic by `seed`, unless `time_left` ends it early.
    """
    rng = np.random.default_rng(seed)
    parameters = [leaf for operator in operators for leaf in operator.parameters()]
    adapted.requires_grad_(False)
    if not parameters:
        return
    optimizer = torch.optim.SGD(
        parameters, settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    targets = torch.from_numpy(lessons.samples.targets_of())
    for index in _batches(lessons.samples.n, lessons.task.batch, settings.steps, rng):
        if time_left() <= 0:
            return
        outputs = adapted(taught[index], operators)
        loss = lessons.task.loss.distillation(outputs, lessons.teacher[index], lessons.task.temperature)
        if settings.label_weight:
            loss = loss + settings.label_weight * lessons.task.loss.task(outputs, targets[index])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()


def _cut_samples(adapted: AdaptedModel, split: Split) -> CutSamples:
    return CutSamples(adapted, lambda which: split.part(which).arrays()[0], split.n)


def _score(
    adapted: AdaptedModel,
    operators: Sequence[TorchOperator],
    samples: CutSamples,
    split: Split,
    metric: Metric,
    limit: int | None = None,
) -> Score:
    targets = split.targets_of(slice(limit))
    tallies = []
    with torch.no_grad():
        for start in range(0, len(targets), BATCH):
            batch = slice(start, min(start + BATCH, len(targets)))
            tallies.append(metric.tally(adapted(samples[batch], operators).numpy(), targets[batch]))
    return Score(metric, metric.value(np.asarray(sum(tallies))), len(targets), split.name)


def _batches(n: int, size: int, count: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield `count` index arrays, going through all samples before any comes again."""
    queue = rng.permutation(n)
    for _ in range(count):
        if len(queue) < min(size, n):
            queue = rng.permutation(n)
        yield queue[:size]
        queue = queue[size:]
