"""Torch functions from numpy functions: one computation for both, the gradient by a pullback of our own.

For factors that are not unique (singular vectors of equal singular values, an orthogonal basis beyond the rank) two
LAPACKs give two answers, and torch's own gradients are infinite or NaN there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from collections.abc import Callable

    from gos_adapt.instructions.windows import Array

    Arrays = tuple[Array, ...]
    Function = Callable[[Array], Arrays]
    Pullback = Callable[[Array, Arrays, Arrays], Array]


def with_pullback(function: Function, pullback: Pullback) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
    """Return `function` for torch tensors; it can be differentiated once.

    Args:
        function: One array to a tuple of arrays.
        pullback: Called with the array, the results and the gradients with respect to them; returns the gradient with
            respect to the array.
    """

    def applied(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results: tuple[torch.Tensor, ...] = _Apply.apply(matrix, function, pullback)  # type: ignore[no-untyped-call]
        return results

    return applied


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: torch.Tensor, function: Function, pullback: Pullback) -> tuple[torch.Tensor, ...]:
        array = matrix.numpy(force=True)
        results = function(array)
        ctx.pull = lambda gradients: pullback(array, results, gradients)
        return tuple(_tensor(result, matrix) for result in results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        pulled = ctx.pull(tuple(gradient.numpy(force=True) for gradient in gradients))
        return _tensor(pulled, gradients[0]), None, None


def _tensor(array: Array, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(array.copy()).to(
        like
    )  # numpy calls one number of negative stride contiguous; torch refuses it
