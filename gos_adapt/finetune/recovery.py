"""Recovery: train all replacements of a model together to compute what the original model computes.

What learns are the replacements. An operator that stays learns too when it is given as a replacement by itself
(`with_retrained`): the replacements alone then still describe the result.

Student and original see the same inputs, augmented as the task says and every second mixed with another, and learning
goes on for as long as there is time (function matching). They are compared by their outputs and, in equal parts, by the
ends of their stages, down to the features that the last layer reads: a few outputs say little of a sample, and what
they leave open is learnt by heart. Labels, mixed as the inputs, teach what the original does not know: the more
training samples it gets wrong, the more they weigh. The length of the training is whatever `done` says, usually a share
of a time budget; the learning rate follows it, so that the training ends settled at any length. The state is given to
`keep` now and then: a training that was killed goes on from there.

Whether a training helped is told by mixed inputs, too, not by the score. Samples that the original was trained with
favour what was trained less, because its weights remember them: of two ResNet-20 made faster, one had 94.0 % of such
samples right after 295 steps, the other 92.6 % after 2,199; of samples never seen 88.2 and 89.5 %.

Reference: Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", CVPR 2022; Romero et al.,
"FitNets: hints for thin deep nets", ICLR 2015, for tensors inside, though here all are compared from the first step on,
and none needs a regressor, as a replacement keeps the shape. Deviations from the thesis, 4.3: more than the replaced
operators may learn; another optimiser (`optimizer`); the learning rate rises and then falls along a cosine, so that the
last steps settle; products compute in mixed precision; the weight of the labels depends on the model.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gos_adapt.finetune.adapted import BATCH, AdaptedModel, Tensors
from gos_adapt.finetune.distil import score
from gos_adapt.finetune.freed_memory import keep_freed_memory
from gos_adapt.finetune.learnt_output import learnt_output
from gos_adapt.finetune.optimizer import Optimizer
from gos_adapt.finetune.precision import mixed_precision
from gos_adapt.model.model import Replacement
from gos_adapt.model.sites import find_sites
from gos_adapt.model.splice import splice
from gos_adapt.model.stages import stage_ends
from gos_adapt.model.torch_executor import TorchExecutor
from gos_adapt.operators.torch_form import TorchOperator
from gos_adapt.task.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gos_adapt.model.model import Array, Model
    from gos_adapt.task import Score, Task

    State = Mapping[str, Array]

STEPS, OPTIMIZER = "steps", "optimizer."
"""Names in a state."""
VARIANTS = 16
"""Passes over the samples, each augmented and mixed anew, after which they and the teacher's answers may repeat."""
MAX_BYTES = 2**28
"""Of the teacher's answers to all variants: kept if they fit, and otherwise samples never repeat."""
ROUNDING = 1e-10
"""Of the mean square of what a tensor holds: errors below are none."""
LABELS, LABELLED = 10.0, 1024
"""Weight of the labels over the share of training samples that the original gets wrong, up to a weight of 1; and the
samples that tell. Labels that an original knows by heart do harm (docs/operator-search.md)."""
TIMED_STEPS = 3
"""The fastest of them tells how long one takes: the first also prepares what all need."""


@dataclass(frozen=True)
class Recovery:
    """How to train.

    Attributes:
        learning_rate: At its peak, relative to the root mean square of each weight.
        warm_up: Share of the training in which the learning rate rises.
        keep_every_s: Seconds between two calls of `keep`.
    """

    learning_rate: float = 0.015
    warm_up: float = 0.05
    keep_every_s: float = 60.0

    def learning_rate_at(self, share: float) -> float:
        """Learning rate when `share` of the training, in [0, 1], is done."""
        rise = min(1.0, (share + 1e-3) / self.warm_up) if self.warm_up else 1.0
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


@dataclass(frozen=True, eq=False)
class Recovered:
    """A model after recovery.

    Attributes:
        model: Spliced.
        replacements: With the better weights of before and after, in the order they were given.
        loss: Of what is returned, as `Teacher.loss` has it; tells better from worse.
        score: On the selection split.
        steps: Of the optimiser, over all processes that worked on it.
    """

    model: Model
    replacements: tuple[Replacement, ...]
    loss: float
    score: Score
    steps: int


def recover(
    model: Model,
    replacements: Sequence[Replacement],
    task: Task,
    settings: Recovery,
    done: Callable[[int], float],
    *,
    teacher: Teacher,
    resume: State | None = None,
    keep: Callable[[State], None] = lambda _state: None,
    progress: Callable[[float], None] = lambda _share: None,
) -> Recovered:
    """Train replacements together, and return what the teacher finds better: before or after.

    Args:
        model: Without the replacements; also the teacher.
        replacements: Of its sites, none overlapping another.
        task: Its training split is learnt from.
        settings: Of the training.
        done: From the number of steps to the share of the training that is done; it ends at 1.
        teacher: For `model` and `task`.
        resume: What an earlier process gave to `keep`.
        keep: Takes the state now and then.
        progress: Called with the share that is done.
    """
    keep_freed_memory()
    student = _Student(model, replacements, teacher.compared)
    steps = student.restore(resume) if resume else 0
    kept = time.monotonic()
    while student.parameters and (share := done(steps)) < 1:
        progress(share)
        student.learn(teacher, steps, settings.learning_rate_at(share))
        steps += 1
        if time.monotonic() - kept > settings.keep_every_s:
            keep(student.state(steps))
            kept = time.monotonic()
    trained = student.replacements()
    before, after = splice(model, replacements), splice(model, trained)
    loss_before, loss_after = teacher.loss(before), teacher.loss(after)
    if loss_after < loss_before:
        return Recovered(after, trained, loss_after, score(after, task.selection, task.metric), steps)
    return Recovered(before, tuple(replacements), loss_before, score(before, task.selection, task.metric), steps)


def with_retrained(model: Model, replacements: Sequence[Replacement]) -> tuple[Replacement, ...]:
    """Add every operator that no replacement touches, as a replacement by itself: then it learns, too.

    Residual branches before the layers in them: what leaves a branch is worth imitating, whatever its layers do for it.
    """
    sites, given = find_sites(model), {replacement.site for replacement in replacements}
    covered = {name for site in sites if site.name in given for name in site.nodes}
    added = []
    for site in sorted(sites, key=lambda site: site.kind != "branch"):
        if site.weights and covered.isdisjoint(site.nodes):
            covered.update(site.nodes)
            added.append(Replacement(site.name, site.operator, site.weights))
    return (*replacements, *added)


def seconds_per_step(model: Model, teacher: Teacher) -> float:
    """Time steps that train all of `model`; 0 where nothing can learn."""
    keep_freed_memory()
    student = _Student(model, with_retrained(model, ()), teacher.compared)

    def seconds(step: int) -> float:
        begin = time.monotonic()
        student.learn(teacher, step, 0.0)
        return time.monotonic() - begin

    return min(map(seconds, range(TIMED_STEPS))) if student.parameters else 0.0


class _Student:
    """The model with trainable operators at its sites, and their optimiser."""

    def __init__(self, model: Model, replacements: Sequence[Replacement], compared: Sequence[str]) -> None:
        given = {replacement.site: replacement for replacement in replacements}
        sites = [site for site in find_sites(model) if site.name in given]
        self._order = [replacement.site for replacement in replacements]
        self._compared = compared
        self._model = AdaptedModel(model, sites, compared, whole=True)
        self._model.requires_grad_(False)
        self._given = [given[site.name] for site in self._model.sites]
        self._operators = [TorchOperator(r.operator, r.weights) for r in self._given]
        self.parameters = [leaf for operator in self._operators for leaf in operator.parameters()]
        if self.parameters:
            self._optimizer = Optimizer(self.parameters)

    def learn(self, teacher: Teacher, step: int, learning_rate: float) -> None:
        """Take one step towards the teacher."""
        lesson = teacher[step]
        with mixed_precision():
            computed = self._model.compute({self._model.source: lesson.inputs}, self._operators)
        own = dict(zip(self._compared, computed, strict=True))
        self._optimizer.step(teacher.distance(own, lesson), learning_rate)

    def replacements(self) -> tuple[Replacement, ...]:
        """The replacements with the weights as they are now, in the order they were given."""
        trained = {
            given.site: replace(given, weights=operator.weights())
            for given, operator in zip(self._given, self._operators, strict=True)
        }
        return tuple(trained[name] for name in self._order)

    def state(self, steps: int) -> State:
        """Everything that `restore` needs."""
        weights = {f"weight.{k}": leaf.detach().numpy().copy() for k, leaf in enumerate(self.parameters)}
        moments = {f"{OPTIMIZER}{name}": value for name, value in self._optimizer.state().items()}
        return {STEPS: np.array(steps, np.int64), **weights, **moments}

    def restore(self, state: State) -> int:
        """Go back to a state of the same student; return its number of steps."""
        with torch.no_grad():
            for k, leaf in enumerate(self.parameters):
                leaf.copy_(torch.from_numpy(state[f"weight.{k}"]))
        own = {name.removeprefix(OPTIMIZER): value for name, value in state.items() if name.startswith(OPTIMIZER)}
        self._optimizer.restore(own)
        return int(state[STEPS])


class Lesson(NamedTuple):
    """Samples of one step.

    Attributes:
        inputs: ``(n, ...)``.
        answers: What the original computes of them, by tensor.
        labels: ``(n, classes)``, the share that each class has in a sample; `None` where labels do not count.
    """

    inputs: Tensor
    answers: Tensors
    labels: Tensor | None


class Teacher:
    """The original model and the labels: what is learnt in every step, and how far another model is from both.

    Several trainings may share one: what it answered for one, it need not answer again where answers are kept.

    Args:
        model: The original.
        task: Its training split is learnt from, its selection split tells how far.
        seed: Of the order of samples, their augmentation and mixing.

    Attributes:
        compared: Names of the tensors that a student should compute likewise: the output, then the ends of stages.
    """

    def __init__(self, model: Model, task: Task, seed: int) -> None:
        self._model, self._task, self._seed = model, task, seed
        self._source, self._output = model.inputs[0].name, learnt_output(model, task)
        self.compared = (self._output, *stage_ends(model, self._output))
        self._executor = TorchExecutor(model.proto)
        self._answers: dict[int, Tensors] = {}
        self._size = min(task.batch, task.training.n)

    def __getitem__(self, step: int) -> Lesson:
        """Return the samples of a step: in a pass, which is of full batches, none comes twice."""
        steps = self._task.full_batches
        if self._repeats:
            step %= VARIANTS * steps
        order = np.random.default_rng((self._seed, step // steps)).permutation(self._task.training.n)
        which = order[step % steps * self._size :][: self._size]
        rng = np.random.default_rng((self._seed, step, 1))
        inputs, targets = self._task.training.augmented(which, self._task.augmentation, rng)
        shares = np.maximum(0, rng.uniform(-1, 1, len(inputs)))
        lesson = self._lesson(inputs, targets, shares, self.compared, self._answers.get(step))
        if self._repeats and step not in self._answers:
            self._answers[step] = {name: answer.clone() for name, answer in lesson.answers.items()}  # no views of more
        return lesson

    def distance(self, computed: Tensors, lesson: Lesson) -> Tensor:
        """What a student has to reduce: its errors, each relative to that of always answering the same."""
        errors = [
            self._error(name, own.float(), lesson.answers[name]) / self._spread[name] for name, own in computed.items()
        ]
        if lesson.labels is not None:
            unlike = self._task.loss.task(computed[self._output].float(), lesson.labels)
            errors.append(self.label_weight * unlike / self._uncertainty)
        return torch.stack(errors).sum()

    def loss(self, model: Model, n: int | None = None) -> float:
        """Distance of a model's outputs on mixed pairs of selection inputs; infinite if it computes what is no number.

        Such mixtures were in no training of either, though the original may have seen the samples. Where labels count,
        the original itself has a loss, too. `n` pairs are enough to compare sets that are far apart; all by default.
        """
        executor, name = TorchExecutor(model.proto), learnt_output(model, self._task)
        exam = self._exam if n is None else self._exam[: -(-n // BATCH)]

        def loss_of(lesson: Lesson) -> float:
            computed = self._compute(executor, lesson.inputs, (name,))
            return float(self.distance({self._output: computed[name]}, lesson))

        loss = sum(len(lesson.inputs) * loss_of(lesson) for lesson in exam) / sum(len(lesson.inputs) for lesson in exam)
        return loss if math.isfinite(loss) else math.inf

    @cached_property
    def label_weight(self) -> float:
        """What labels count, relative to outputs: from 0, where the original knows all of them, to 1.

        Also 0 for targets that are values, or many to a sample: there nothing was measured.
        """
        if not self._task.training.has_classes or self._task.training.targets.ndim > 1:
            return 0.0
        known = score(self._model, self._task.training.part(slice(0, LABELLED)), METRICS["top-1"])
        return min(1.0, LABELS * (1 - known.value))

    def _lesson(
        self, inputs: Array, targets: Array, shares: Array, names: Sequence[str], answers: Tensors | None = None
    ) -> Lesson:
        """Mix samples, and their labels if they count; the original answers what it has not yet."""
        mixed = mixed_in_pairs(torch.from_numpy(inputs), shares)
        answers = answers or self._compute(self._executor, mixed, names)
        if not self.label_weight:
            return Lesson(mixed, answers, None)
        classes = F.one_hot(torch.from_numpy(targets), answers[self._output].shape[1]).float()
        return Lesson(mixed, answers, mixed_in_pairs(classes, shares))

    def _error(self, name: str, computed: Tensor, wanted: Tensor) -> Tensor:
        if name == self._output:
            return self._task.loss.distillation(computed, wanted, self._task.temperature)
        return (computed - wanted).square().mean()

    @cached_property
    def _repeats(self) -> bool:
        """Whether samples come again as they were, with the answers that were kept."""
        sample = torch.from_numpy(self._task.training.part(slice(0, 1)).arrays()[0])
        answers = self._compute(self._executor, sample, self.compared)
        size = sum(answer.nbytes for answer in answers.values())
        return VARIANTS * self._task.training.n * size <= MAX_BYTES

    @cached_property
    def _exam(self) -> list[Lesson]:
        rng = np.random.default_rng((self._seed, 2))
        return [
            self._lesson(inputs, targets, rng.random(len(inputs)), (self._output,))
            for inputs, targets in self._task.selection.batches(BATCH)
        ]

    @cached_property
    def _uncertainty(self) -> float:
        """Cross-entropy of always answering how frequent the classes are; 1 where there is but one."""
        counts = np.bincount(self._task.training.targets)
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log(shares)).sum()) or 1.0

    @cached_property
    def _spread(self) -> dict[str, float]:
        """The error of always answering the mean, for each tensor; 1 where all answers are the same."""
        spread = {}
        for name, answers in self[0].answers.items():
            wanted = answers.double()  # of probabilities in float32 the error would be rounding
            error = float(self._error(name, wanted.mean(dim=0, keepdim=True).expand_as(wanted), wanted))
            spread[name] = error if error > ROUNDING * float(wanted.square().mean()) else 1.0
        return spread

    def _compute(self, executor: TorchExecutor, inputs: Tensor, names: Sequence[str]) -> Tensors:
        with torch.no_grad(), mixed_precision():
            computed = executor.compute({self._source: inputs}, names)
        return {name: tensor.float() for name, tensor in zip(names, computed, strict=True)}


def mixed_in_pairs(samples: Tensor, shares: Array) -> Tensor:
    """Mix each sample of a batch with the one as far from the end.

    Args:
        samples: ``(n, ...)``.
        shares: ``(n,)``, of the other in the result, in [0, 1].

    Reference: Zhang et al., "mixup: Beyond empirical risk minimization", ICLR 2018.
    """
    share = torch.from_numpy(shares.astype(np.float32)).reshape(-1, *[1] * (samples.dim() - 1))
    return torch.lerp(samples, samples.flip(0), share)
