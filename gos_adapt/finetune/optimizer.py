"""The optimiser of long trainings: steps relative to the size of each weight, orthogonal for matrices.

A matrix, or the filters of a convolution as one, moves along the nearest orthogonal matrix to its gradient (Muon), so
that all directions are learnt equally fast. Biases, scales and filters of one input channel, which mix nothing, move by
Adam. Both take steps that are a given fraction of the weight's own size: batch normalisation is folded into the
weights, and factors from a closed form can be badly scaled.

Reference: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; steps made as large as Adam's
after Liu et al., "Muon is scalable for LLM training", 2025, section 2.2. Deviation: no weight decay, as the teacher's
function is what is wanted; the first and the last layer are matrices like the others; matrices of one shape are made
orthogonal together, in float32. (torch's own Muon takes them one by one in bfloat16, which processors without such
instructions emulate: 109 of 467 ms of a training step of ResNet-20 on two cores with AVX2, where this takes 10.)
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gos_adapt.finetune.fit import typical_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Array = np.ndarray[Any, Any]

MOMENTUM = 0.95
ADAMS_SIZE = 0.2
"""Root mean square of a step, in learning rates: what Adam's is found to be."""
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
"""Odd polynomial that brings singular values in (0, 1] towards 1 when it is applied so often; Jordan et al."""


class Optimizer:
    """Takes steps along the gradients of weights.

    Args:
        leaves: To train, at least one; filters in channels-last order.
    """

    def __init__(self, leaves: Sequence[Tensor]) -> None:
        self._leaves = leaves
        matrices = [leaf for leaf in leaves if _is_matrix(leaf)]
        others = [leaf for leaf in leaves if not _is_matrix(leaf)]
        self._matrices = matrices
        self._views = [_as_matrix(leaf.detach()) for leaf in matrices]
        # a step on a copy would teach nothing
        assert all(view.data_ptr() == leaf.data_ptr() for view, leaf in zip(self._views, matrices, strict=True))
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(_Muon(_groups(self._views), {"lr": 0.0}))
        if others:
            self._parts.append(torch.optim.Adam(_groups(others)))

    def step(self, loss: Tensor, learning_rate: float) -> None:
        """Take one step down a loss; the learning rate is relative to the root mean square of each weight."""
        for leaf in self._leaves:
            leaf.grad = None
        torch.autograd.backward(loss)
        for leaf, view in zip(self._matrices, self._views, strict=True):
            view.grad = None if leaf.grad is None else _as_matrix(leaf.grad)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = learning_rate * group["scale"]
            part.step()

    def state(self) -> Mapping[str, Array]:
        """What is remembered of earlier steps."""
        return {
            f"{k}.{name}": value.numpy().copy()
            for k, remembered in enumerate(self._remembered())
            for name, value in remembered.items()
        }

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go back to what `state` returned for the same weights."""
        for k, remembered in enumerate(self._remembered()):
            own = f"{k}."
            remembered |= {
                name.removeprefix(own): torch.from_numpy(np.array(value))
                for name, value in state.items()
                if name.startswith(own)
            }

    def _remembered(self) -> Iterator[dict[str, Tensor]]:
        for part in self._parts:
            for group in part.param_groups:
                yield from (part.state[weight] for weight in group["params"])


class _Muon(torch.optim.Optimizer):
    """Steps along the nearest orthogonal matrix to the momentum of a gradient."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take one step by the gradients that the weights have."""
        alike = defaultdict(list)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.shape].append((weight, group["lr"]))
        for shape, weights in alike.items():
            steps = orthogonal(torch.stack([self._direction(weight) for weight, _ in weights]))
            for (weight, learning_rate), step in zip(weights, steps, strict=True):
                weight.sub_(step, alpha=ADAMS_SIZE * math.sqrt(max(shape)) * learning_rate)

    def _direction(self, weight: Tensor) -> Tensor:
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        momentum = state["momentum_buffer"]
        momentum.lerp_(weight.grad, 1 - MOMENTUM)
        return weight.grad.lerp(momentum, MOMENTUM)  # Nesterov's


def orthogonal(matrices: Tensor) -> Tensor:
    """Roughly the nearest matrices whose singular values are all 1: theirs lie between 0.7 and 1.2, small ones lower.

    Args:
        matrices: ``(n, rows, columns)``.
    """
    a, b, c = QUINTIC
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value is above 1 then
    for _ in range(ITERATIONS):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if wide.shape == matrices.shape else wide.mT


def _is_matrix(leaf: Tensor) -> bool:
    return leaf.dim() in (2, 4) and leaf.shape[1] > 1


def _as_matrix(weight: Tensor) -> Tensor:
    """A row a filter, in the order of memory; a copy where that is not channels last."""
    return weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1).flatten(1)


def _groups(weights: Sequence[Tensor]) -> list[dict[str, Any]]:
    return [{"params": [weight], "scale": typical_size(weight)} for weight in weights]
