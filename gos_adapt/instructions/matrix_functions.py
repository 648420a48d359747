"""Functions of one weight matrix that is not decomposed for its factors: inverses, and what one number says about it.

A number is a weight ``(1,)``, which `scale` and `weight_scale` multiply by.

Reference: thesis, table 4.3. Deviation: the inverse is regularised, so that every square matrix has one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from gos_adapt.errors import Rejection
from gos_adapt.instructions.base import Instruction, Kind, Shape
from gos_adapt.instructions.conditioning import RIDGE, RIDGES, numpy_in_double, ridged, tolerance, torch_in_double
from gos_adapt.instructions.notation import term
from gos_adapt.instructions.pullbacks import with_pullback
from gos_adapt.instructions.rules import shape_rule

if TYPE_CHECKING:
    from gos_adapt.instructions.windows import Array

    Arrays = tuple[Array, ...]

_WEIGHT = (Kind.WEIGHT,)


def _square(w: Shape) -> Shape | Rejection:
    return w if w[0] == w[1] else Rejection(f"a square matrix expected, got {w}")


def _number_of_square(w: Shape) -> Shape | Rejection:
    shape = _square(w)
    return shape if isinstance(shape, Rejection) else (1,)


# inverse: (Wᵀ W + λ I)⁻¹ Wᵀ, where λ is `ridge` times the mean squared singular value


def _inverse(w: Array, ridge: float) -> Array:
    return np.linalg.solve(ridged(w.T @ w, ridge, np.eye(len(w))), w.T)


def _torch_inverse(w: torch.Tensor, ridge: float) -> torch.Tensor:
    inverse: torch.Tensor = torch.linalg.solve(ridged(w.T @ w, ridge, torch.eye(len(w)).to(w)), w.T)
    return inverse


# determinant


def _determinant(w: Array) -> Arrays:
    return (np.linalg.det(w).reshape(1),)


def _determinant_pullback(w: Array, _determinants: Arrays, gradients: Arrays) -> Array:
    """Return the matrix of cofactors, which also a singular matrix has (torch 2.13 gives zeros for some)."""
    u, s, vt = np.linalg.svd(w)
    others = np.where(np.eye(len(s), dtype=bool), 1, s).prod(axis=1)
    cofactors: Array = np.linalg.det(u) * np.linalg.det(vt) * (u * others) @ vt
    return gradients[0] * cofactors


_torch_determinant = with_pullback(_determinant, _determinant_pullback)


ROWS = (
    Instruction(
        name="inverse",
        arguments=_WEIGHT,
        infer=shape_rule(lambda w, ridge: _square(w), 2, ridge=RIDGE),
        numpy=numpy_in_double(_inverse),
        torch=torch_in_double(_torch_inverse),
        hyperparameters={"ridge": RIDGES},
        equation=term("inv", lambda ridge: f"{ridge:g}"),
    ),
    Instruction(
        name="pseudo_inverse",
        arguments=_WEIGHT,
        infer=shape_rule(lambda w: w[::-1], 2),
        numpy=numpy_in_double(lambda w: np.linalg.pinv(w, rcond=tolerance(w.shape))),
        torch=torch_in_double(lambda w: torch.linalg.pinv(w, rtol=tolerance(w.shape))),
        equation=term("pinv"),
    ),
    Instruction(
        name="determinant",
        arguments=_WEIGHT,
        infer=shape_rule(_number_of_square, 2),
        numpy=numpy_in_double(lambda w: _determinant(w)[0]),
        torch=torch_in_double(lambda w: _torch_determinant(w)[0]),
        equation=term("det"),
    ),
    Instruction(
        name="trace",
        arguments=_WEIGHT,
        infer=shape_rule(_number_of_square, 2),
        numpy=lambda w: np.trace(w).reshape(1),
        torch=lambda w: torch.trace(w).reshape(1),
        equation=term("tr"),
    ),
    Instruction(
        name="rank",
        arguments=_WEIGHT,
        infer=shape_rule(lambda w: (1,), 2),
        numpy=numpy_in_double(lambda w: np.linalg.matrix_rank(w, rtol=tolerance(w.shape)).reshape(1)),
        torch=torch_in_double(lambda w: torch.linalg.matrix_rank(w, rtol=tolerance(w.shape)).reshape(1)),
        equation=term("rank"),
    ),
)
