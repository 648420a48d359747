"""Recovery: train all replacements of a model together against the original model's outputs.

What learns are the replacements. A layer that keeps its operator learns too when it is given as a replacement by that
operator (`with_retrained_layers`): the replacements alone then still describe the result.

The lessons repeat after `VARIANTS` passes over the samples, each augmented anew: so the teacher answers each only once,
which saves a third of the time where it is much larger than the student. The length of the training is whatever `done`
says, usually a share of a time budget; the learning rate follows it, so that the training ends settled at any length.
The state is given to `keep` now and then: a training that was killed goes on from there.

Reference: METHOD 1.4.3, 1.4.4. Deviations from METHOD 1.3: the learning rate rises and then falls along a cosine, so
that the last steps settle; Nesterov's momentum; gradients are clipped, because factors from a closed form can be badly
scaled; products compute in mixed precision.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gos_adapt.finetune.adapted import AdaptedModel
from gos_adapt.finetune.distil import score
from gos_adapt.finetune.precision import mixed_precision
from gos_adapt.model.model import Replacement
from gos_adapt.model.sites import find_sites
from gos_adapt.model.splice import splice
from gos_adapt.model.torch_executor import TorchExecutor
from gos_adapt.operators.torch_form import TorchOperator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gos_adapt.model.model import Array, Model
    from gos_adapt.task import Score, Task

    State = Mapping[str, Array]

STEPS = "steps"
VARIANTS = 8
"""Augmentations of every sample."""
MAX_BYTES = 2**28
"""Of the teacher's answers that are kept; further ones are computed again."""


@dataclass(frozen=True)
class Recovery:
    """How to train.

    Attributes:
        learning_rate: At its peak.
        warm_up: Share of the training in which the learning rate rises.
        momentum: METHOD 1.3.
        weight_decay: METHOD 1.3.
        label_weight: Of the task's loss beside the distillation loss.
        max_gradient_norm: Longer gradients are scaled down to this.
        keep_every_s: Seconds between two calls of `keep`.
    """

    learning_rate: float = 0.01
    warm_up: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_weight: float = 0.0
    max_gradient_norm: float = 5.0
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
        before: Score on the selection split before training.
        score: Likewise, of what is returned.
        steps: Of the optimiser, over all processes that worked on it.
    """

    model: Model
    replacements: tuple[Replacement, ...]
    before: Score
    score: Score
    steps: int


def recover(
    model: Model,
    replacements: Sequence[Replacement],
    task: Task,
    settings: Recovery,
    done: Callable[[int], float],
    *,
    batches: TeacherBatches,
    resume: State | None = None,
    keep: Callable[[State], None] = lambda _state: None,
    progress: Callable[[float], None] = lambda _share: None,
) -> Recovered:
    """Train replacements together, and return what is better on the selection split: before or after.

    Args:
        model: Without the replacements; also the teacher.
        replacements: Of its sites, none overlapping another.
        task: Its training split is learnt from.
        settings: Of the training.
        done: From the number of steps to the share of the training that is done; it ends at 1.
        batches: Of `task`, with the outputs of `model`.
        resume: What an earlier process gave to `keep`.
        keep: Takes the state now and then.
        progress: Called with the share that is done.
    """
    before_model = splice(model, replacements)
    before = score(before_model, task.selection, task.metric)
    student = _Student(model, replacements, task, settings)
    steps = student.restore(resume) if resume else 0
    kept = time.monotonic()
    while student.parameters and (share := done(steps)) < 1:
        progress(share)
        student.learn(*batches[steps], settings.learning_rate_at(share))
        steps += 1
        if time.monotonic() - kept > settings.keep_every_s:
            keep(student.state(steps))
            kept = time.monotonic()
    trained = student.replacements()
    after_model = splice(model, trained)
    after = score(after_model, task.selection, task.metric)
    if not np.isfinite(after.value) or task.metric.drop(before.value, after.value) >= 0:
        return Recovered(before_model, tuple(replacements), before, before, steps)
    return Recovered(after_model, trained, before, after, steps)


def with_retrained_layers(model: Model, replacements: Sequence[Replacement]) -> tuple[Replacement, ...]:
    """Add every layer that no replacement touches, as a replacement by its own operator: then it learns too."""
    sites = {site.name: site for site in find_sites(model)}
    covered = {name for replacement in replacements for name in sites[replacement.site].nodes}
    layers = [
        site for site in sites.values() if site.kind != "branch" and site.weights and covered.isdisjoint(site.nodes)
    ]
    return (*replacements, *(Replacement(site.name, site.operator, site.weights) for site in layers))


class _Student:
    """The model with trainable operators at its sites, and their optimiser."""

    def __init__(self, model: Model, replacements: Sequence[Replacement], task: Task, settings: Recovery) -> None:
        given = {replacement.site: replacement for replacement in replacements}
        self._settings, self._task = settings, task
        self._order = [replacement.site for replacement in replacements]
        self._model = AdaptedModel(model, [site for site in find_sites(model) if site.name in given], whole=True)
        self._model.requires_grad_(False)
        self._given = [given[site.name] for site in self._model.sites]
        self._operators = [TorchOperator(r.operator, r.weights) for r in self._given]
        self.parameters = [leaf for operator in self._operators for leaf in operator.parameters()]
        if self.parameters:
            self._optimizer = torch.optim.SGD(
                self.parameters,
                settings.learning_rate,
                settings.momentum,
                weight_decay=settings.weight_decay,
                nesterov=True,
            )

    def learn(self, inputs: Tensor, targets: Tensor, wanted: Tensor, learning_rate: float) -> None:
        """Take one step on a batch, towards its targets and the teacher's outputs."""
        task = self._task
        with mixed_precision():
            outputs = self._model({self._model.source: inputs}, self._operators).float()
        loss = task.loss.distillation(outputs, wanted, task.temperature)
        if self._settings.label_weight:
            loss = loss + self._settings.label_weight * task.loss.task(outputs, targets)
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters, self._settings.max_gradient_norm)
        self._optimizer.step()

    def replacements(self) -> tuple[Replacement, ...]:
        """The replacements with the weights as they are now, in the order they were given."""
        trained = {
            given.site: replace(given, weights=operator.weights())
            for given, operator in zip(self._given, self._operators, strict=True)
        }
        return tuple(trained[name] for name in self._order)

    def state(self, steps: int) -> State:
        """Everything that `restore` needs."""
        arrays: dict[str, Array] = {STEPS: np.array(steps, np.int64)}
        for k, leaf in enumerate(self.parameters):
            arrays[f"weight.{k}"] = leaf.detach().numpy().copy()
            momentum = self._optimizer.state[leaf].get("momentum_buffer")
            kept = torch.zeros_like(leaf) if momentum is None else momentum
            arrays[f"momentum.{k}"] = kept.detach().numpy().copy()
        return arrays

    def restore(self, state: State) -> int:
        """Go back to a state of the same student; return its number of steps."""
        with torch.no_grad():
            for k, leaf in enumerate(self.parameters):
                leaf.copy_(torch.from_numpy(state[f"weight.{k}"]))
                self._optimizer.state[leaf]["momentum_buffer"] = torch.from_numpy(state[f"momentum.{k}"].copy())
        return int(state[STEPS])


class TeacherBatches:
    """The batch of every step: inputs, targets, and the original model's outputs.

    Several trainings of one model may share them: what the teacher answered for one, it need not answer again.

    Args:
        model: The teacher.
        task: Its training split is learnt from.
        seed: Of the order of samples and their augmentation.
    """

    def __init__(self, model: Model, task: Task, seed: int) -> None:
        self._task, self._seed = task, seed
        self._source, self._output = model.inputs[0].name, model.outputs[0].name
        self._teacher = TorchExecutor(model.proto)
        self._answers: dict[int, Tensor] = {}
        self._room = MAX_BYTES
        self._size = min(task.batch, task.training.n)
        self._steps = task.training.n // self._size  # of one pass

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """The batch of a step: all samples come once before any comes again."""
        step %= VARIANTS * self._steps
        order = np.random.default_rng((self._seed, step // self._steps)).permutation(self._task.training.n)
        which = order[step % self._steps * self._size :][: self._size]
        rng = np.random.default_rng((self._seed, step, 1))
        inputs, targets = map(torch.from_numpy, self._task.training.augmented(which, self._task.augmentation, rng))
        answer = self._answers.get(step)
        if answer is None:
            with torch.no_grad(), mixed_precision():
                (answer,) = self._teacher.compute({self._source: inputs}, (self._output,))
            answer = answer.float()
            if self._room >= answer.nbytes:
                self._room -= answer.nbytes
                self._answers[step] = answer
        return inputs, targets, answer
