"""Functions of a matrix that are defined for every matrix, in numpy and torch alike.

Inside, they compute in float64, so that rounding hardly shows in float32. A matrix that holds an infinity or NaN gives
NaN everywhere. What divides by singular values has a ridge below, or leaves out those that are zero to float32.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from gos_adapt.instructions.rules import number

if TYPE_CHECKING:
    from collections.abc import Callable

    from gos_adapt.instructions.base import HyperValue, Shape
    from gos_adapt.instructions.windows import Array

Tensor = TypeVar("Tensor", "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", torch.Tensor)

RIDGE = number(1e-8, 1.0)
"""Smaller ones drown in float64, too."""
RIDGES = (1e-6, 1e-4, 1e-2)
_TINY = 1e-30
"""Added to every ridge: the zero matrix has none of its own."""


def numpy_in_double(function: Callable[..., Array]) -> Callable[..., Array]:
    """Let a function of one finite float64 matrix take any matrix, and return what has that matrix's type."""

    @wraps(function)
    def rounded(matrix: Array, **hyper: HyperValue) -> Array:
        finite = np.isfinite(matrix).all()
        with np.errstate(over="ignore"):
            result = function(np.where(finite, matrix, 0).astype(np.float64), **hyper)
            return np.where(finite, result, np.nan).astype(matrix.dtype)

    return rounded


def torch_in_double(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Do in torch what `numpy_in_double` does in numpy."""

    @wraps(function)
    def rounded(matrix: torch.Tensor, **hyper: HyperValue) -> torch.Tensor:
        finite = torch.isfinite(matrix).all()
        result = function(torch.where(finite, matrix, 0).double(), **hyper)
        return torch.where(finite, result, torch.nan).to(matrix.dtype)

    return rounded


def ridged(gram: Tensor, ridge: float, eye: Tensor) -> Tensor:
    """Add `ridge` times the mean of the diagonal to the diagonal of ``A Aᵀ``: positive definite whatever ``A`` is."""
    positive: Tensor = gram + (ridge * gram.diagonal().mean() + _TINY) * eye
    return positive


def tolerance(shape: Shape) -> float:
    """Return the fraction of the largest singular value below which a float32 matrix's others are rounding.

    Reference: the default of `numpy.linalg.matrix_rank` for float32.
    """
    return float(np.finfo(np.float32).eps) * max(shape)
