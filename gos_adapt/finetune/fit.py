"""Fit a candidate operator to the operator it replaces, before any training of the model.

1. Where the candidate ends in an activation, compare what goes into it: up to there it is linear in its last layer.
2. Closed form for the last layers (`closed_form`).
3. If that leaves an error, and is not the optimum: a few hundred steps of Adam on all weights, against what comes out.
4. Closed form again.
5. The best of these, the initial weights included, by the error on held-out samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gos_adapt.finetune.closed_form import Solved, solve_last_layers
from gos_adapt.operators.graph import OperatorGraph
from gos_adapt.operators.hints import without_hints
from gos_adapt.operators.torch_form import TorchOperator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gos_adapt.finetune.capture import Activations
    from gos_adapt.model.model import Array

ACTIVATIONS = frozenset({"relu", "relu6", "leaky_relu", "sigmoid", "hard_sigmoid", "tanh", "hard_swish"})
BATCH = 64
EXACT = 1e-9
"""Relative error below which there is nothing left to fit."""


@dataclass(frozen=True)
class FitSettings:
    """How hard to try.

    Attributes:
        steps: Adam steps at most.
        batch: Samples a step.
        learning_rate: Its peak, relative to the root mean square of each weight.
        macs: Bound on the work of the Adam steps; a bound in seconds would make the result depend on the machine.
        held_out: Fraction of the samples that judges; when that is not even one sample, all of them do.
    """

    steps: int = 200
    batch: int = 16
    learning_rate: float = 0.02
    macs: float = 6e9
    held_out: float = 0.25


CLOSED_FORM = FitSettings(steps=0)
"""Ranks candidates well enough."""
DEFAULT = FitSettings()
"""Quick: enough to tell hopeless candidates from others."""
THOROUGH = FitSettings(steps=800, learning_rate=0.01, macs=4e10)
"""For candidates that may go into the model: these seconds keep more accuracy than as many of distillation."""
LONG = FitSettings(steps=3200, learning_rate=0.01)
"""For what is trained for minutes afterwards, with as many `macs` as there is time for: ResNet-20 with three shortcuts,
all that stays fitted so in 40 s, is 0.128 of a constant answer's distance from the original; without any fit, after 140
steps of training, 50 s, 0.210."""


@dataclass(frozen=True)
class Fit:
    """A fitted operator's weights.

    Attributes:
        weights: In weight order.
        relative_error: ``|y - ŷ|² / |y - mean y|²`` on held-out samples; 0 is exact, 1 is as good as a constant.
        method: What gave the weights: ``"initial"``, ``"closed form"``, ``"gradient"`` or ``"gradient, closed form"``.
    """

    weights: tuple[Array, ...]
    relative_error: float
    method: str


class Attempt(NamedTuple):
    """Weights, how they were found, and their error on held-out samples."""

    error: float
    method: str
    weights: tuple[Tensor, ...]


def fit(
    operator: OperatorGraph,
    initial: Sequence[Array],
    teacher: TorchOperator,
    activations: Activations,
    settings: FitSettings = DEFAULT,
) -> Fit:
    """Return weights with which `operator` imitates `teacher` on `activations`.

    Deterministic: random choices derive from the operator's key.
    """
    operator, _ = without_hints(operator)
    rng = np.random.default_rng(int(operator.key, 16))
    stem, teacher_stem = _stems(operator, teacher.graph)
    wanted = run(teacher, activations.teacher_inputs)
    linear = run(module(teacher_stem, list(teacher.leaves)), activations.teacher_inputs)
    inputs, held_out = activations.inputs, int(settings.held_out * len(wanted))
    judge = slice(held_out or None)

    def attempt(method: str, weights: tuple[Tensor, ...]) -> Attempt:
        return Attempt(relative_error(run(module(operator, weights), inputs[judge]), wanted[judge]), method, weights)

    def closed_form(weights: tuple[Tensor, ...]) -> Solved:
        used = len(stem.weights)
        solved = solve_last_layers(stem, weights[:used], inputs[held_out:], linear[held_out:], rng)
        return Solved((*solved.weights, *weights[used:]), solved.optimal and stem is operator)

    attempts = [attempt("initial", tuple(torch.from_numpy(np.array(value, np.float32)) for value in initial))]
    if initial and attempts[0].error > EXACT:
        solved = closed_form(attempts[0].weights)
        attempts.append(attempt("closed form", solved.weights))
        best = min(attempts, key=lambda a: a.error)
        if best.error > EXACT and not solved.optimal and settings.steps:
            trained = _train(operator, best.weights, inputs[held_out:], wanted[held_out:], settings, rng)
            attempts.append(attempt("gradient", trained))
            attempts.append(attempt("gradient, closed form", closed_form(trained).weights))
    best = min(attempts, key=lambda a: a.error)
    weights = tuple(value.numpy() for value in best.weights)
    return Fit(weights, best.error, best.method)


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """``|y - ŷ|² / |y - mean y|²``, the mean taken per channel over samples and positions."""
    channels = wanted.transpose(0, 1).flatten(1)
    spread = (channels - channels.mean(dim=1, keepdim=True)).double().square().sum()
    return float((got - wanted).double().square().sum() / spread.clamp(min=1e-12))


def _stems(operator: OperatorGraph, teacher: OperatorGraph) -> tuple[OperatorGraph, OperatorGraph]:
    """The part of each up to its final activation; the teacher whole when the candidate has none."""
    if operator.nodes[-1].op not in ACTIVATIONS:
        return operator, teacher
    return _without_activation(operator), _without_activation(teacher)


def _without_activation(graph: OperatorGraph) -> OperatorGraph:
    last = graph.nodes[-1]
    return OperatorGraph(graph.nodes[: last.args[0] + 1]) if last.op in ACTIVATIONS else graph


def module(operator: OperatorGraph, weights: Sequence[Tensor]) -> TorchOperator:
    """Return `operator` as a torch module that holds copies of `weights`."""
    return TorchOperator(operator, tuple(value.detach().numpy() for value in weights))


def run(operator: TorchOperator, inputs: Tensor) -> Tensor:
    """Compute an operator on many samples, in batches, without gradient."""
    with torch.no_grad():
        return torch.cat([operator(batch) for batch in torch.split(inputs, BATCH)])


def _train(
    operator: OperatorGraph,
    weights: Sequence[Tensor],
    inputs: Tensor,
    wanted: Tensor,
    settings: FitSettings,
    rng: np.random.Generator,
) -> tuple[Tensor, ...]:
    """Adam on the squared error, its learning rate falling along a cosine."""
    trained = module(operator, weights)
    steps = min(settings.steps, int(settings.macs / (3 * settings.batch * max(1, operator.macs))))
    groups = [{"params": [leaf], "lr": settings.learning_rate * typical_size(leaf)} for leaf in trained.leaves]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    spread = float(wanted.var()) + 1e-12
    for _ in range(steps):
        index = torch.from_numpy(rng.integers(len(inputs), size=settings.batch))
        optimizer.zero_grad()
        loss = (trained(inputs[index]) - wanted[index]).square().mean() / spread
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return tuple(leaf.detach() for leaf in trained.leaves)


def typical_size(leaf: Tensor) -> float:
    """Root mean square of a weight, or a typical one for a weight that is zero."""
    return float(leaf.detach().square().mean().sqrt()) or 0.05
