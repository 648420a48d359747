"""Decompositions of a weight matrix: one row each, the factor wanted is a setting.

Factors count from zero in the order in which they are multiplied. With ``r = rank`` below ``min(m, n)`` the product
``U_r diag(s_r) V_rᵀ`` is the best approximation of that rank, which is how a low-rank layer is written.

Signs are fixed, so that a decomposition is a function: of each left singular vector and each eigenvector the leading
entry (the first within a millionth of the largest magnitude) is positive, and so is what QR has on R's diagonal.

Where a factor has no derivative (singular values or eigenvalues that float32 cannot tell apart, a matrix without full
rank) the directions in which it has none count as zero.

Reference: thesis, table 4.3. Pullbacks: Townsend, "Differentiating the singular value decomposition", 2016; Walter,
Lehmann, "Algorithmic differentiation of linear algebra functions with application in optimum experimental design",
2010; for wide matrices QR is that of the leading square block, the other columns follow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from gos_adapt.errors import Rejection
from gos_adapt.instructions.base import Instruction, Kind, Shape
from gos_adapt.instructions.conditioning import RIDGE, RIDGES, numpy_in_double, ridged, tolerance, torch_in_double
from gos_adapt.instructions.notation import term
from gos_adapt.instructions.pullbacks import with_pullback
from gos_adapt.instructions.rules import integer, shape_rule

if TYPE_CHECKING:
    from gos_adapt.instructions.windows import Array

    Arrays = tuple[Array, ...]

Tensor = TypeVar("Tensor", "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", torch.Tensor)

_WEIGHT = (Kind.WEIGHT,)
_RANKS = (1, 2, 4, 8, 16, 32, 64, 128)


def _signs(columns: Array) -> Array:
    """One or minus one for each column, as its leading entry is."""
    magnitudes = np.abs(columns)
    leading = np.argmax(magnitudes >= (1 - 1e-6) * magnitudes.max(axis=0), axis=0)
    signs: Array = np.where(columns[leading, np.arange(columns.shape[1])] < 0, -1.0, 1.0)
    return signs


def _reciprocal(values: Array, wanted: Array) -> Array:
    """Return ``1 / values`` where `wanted`, else zero."""
    reciprocal: Array = np.divide(1, values, out=np.zeros_like(values), where=wanted)
    return reciprocal


def _inverse_differences(values: Array, shape: Shape) -> Array:
    """Return ``1 / (values[j] - values[i])`` at ``i, j``; zero where they count as equal."""
    differences: Array = values - values[:, None]
    distinct = np.abs(differences) > tolerance(shape) * np.abs(values).max()
    return _reciprocal(differences, distinct)


# Singular values: W = U diag(s) Vᵀ


def _svd_shape(w: Shape, factor: int, rank: int) -> Shape | Rejection:
    if rank > min(w):
        return Rejection(f"rank {rank} of a matrix {w}")
    return ((w[0], rank), (rank,), (rank, w[1]))[factor]


def _svd(w: Array) -> Arrays:
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    signs = _signs(u)
    return u * signs, s, vt * signs[:, None]


def _svd_pullback(w: Array, factors: Arrays, gradients: Arrays) -> Array:
    (u, s, vt), (du, ds, dvt) = factors, gradients
    cut = tolerance(w.shape) * s[0]
    reciprocal = _reciprocal(s, s > cut)
    sums = s + s[:, None]
    between = _inverse_differences(s, w.shape) * _reciprocal(sums, sums > cut)
    left, right = u.T @ du, vt @ dvt.T
    core = between * (left - left.T) * s + s[:, None] * between * (right - right.T) + np.diag(ds)
    outside_u = (du - u @ left) * reciprocal
    outside_v = reciprocal[:, None] * (dvt - right.T @ vt)
    pulled: Array = (u @ core + outside_u) @ vt + u @ outside_v
    return pulled


def _svd_factor(factors: tuple[Tensor, ...], factor: int, rank: int) -> Tensor:
    u, s, vt = factors
    return (u[:, :rank], s[:rank], vt[:rank])[factor]


_torch_svd = with_pullback(_svd, _svd_pullback)


# Eigenvalues of the symmetric part: (W + Wᵀ) / 2 = Q diag(λ) Qᵀ, λ descending


def _eigen_shape(w: Shape, factor: int, rank: int) -> Shape | Rejection:
    if w[0] != w[1] or rank > w[0]:
        return Rejection(f"rank {rank} of a matrix {w}, which must be square and not smaller")
    return ((w[0], rank), (rank,))[factor]


def _eigen(w: Array) -> Arrays:
    values, vectors = np.linalg.eigh((w + w.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    return vectors * _signs(vectors), values


def _eigen_pullback(w: Array, factors: Arrays, gradients: Arrays) -> Array:
    (vectors, values), (d_vectors, d_values) = factors, gradients
    core = _inverse_differences(values, w.shape) * (vectors.T @ d_vectors) + np.diag(d_values)
    pulled = vectors @ core @ vectors.T
    symmetric: Array = (pulled + pulled.T) / 2
    return symmetric


def _eigen_factor(factors: tuple[Tensor, ...], factor: int, rank: int) -> Tensor:
    vectors, values = factors
    return (vectors[:, :rank], values[:rank])[factor]


_torch_eigen = with_pullback(_eigen, _eigen_pullback)


# Orthogonal and triangular: W = Q R


def _qr_shape(w: Shape, factor: int) -> Shape:
    return ((w[0], min(w)), (min(w), w[1]))[factor]


def _qr(w: Array) -> Arrays:
    q, r = np.linalg.qr(w)
    signs = np.where(r.diagonal() < 0, -1.0, 1.0)
    return q * signs, r * signs[:, None]


def _qr_pullback(w: Array, factors: Arrays, gradients: Arrays) -> Array:
    (q, r), (dq, dr) = factors, gradients
    k = len(r)
    dq = dq + w[:, k:] @ dr[:, k:].T  # the columns beyond a square are Qᵀ W
    skew = r[:, :k] @ dr[:, :k].T - dq.T @ q
    symmetric = np.tril(skew) + np.tril(skew, -1).T
    inverse = np.linalg.pinv(r[:, :k], rcond=tolerance(w.shape))
    return np.concatenate(((dq + q @ symmetric) @ inverse.T, q @ dr[:, k:]), axis=1)


_torch_qr = with_pullback(_qr, _qr_pullback)


# Cholesky of what is positive definite whatever W is: W Wᵀ + λ I = L Lᵀ


def _cholesky(w: Array, ridge: float) -> Array:
    return np.linalg.cholesky(ridged(w @ w.T, ridge, np.eye(len(w))))


def _torch_cholesky(w: torch.Tensor, ridge: float) -> torch.Tensor:
    factor: torch.Tensor = torch.linalg.cholesky(ridged(w @ w.T, ridge, torch.eye(len(w)).to(w)))
    return factor


ROWS = (
    Instruction(
        name="svd",
        arguments=_WEIGHT,
        infer=shape_rule(_svd_shape, 2, factor=integer(0, 2), rank=integer()),
        numpy=numpy_in_double(lambda w, factor, rank: _svd_factor(_svd(w), factor, rank)),
        torch=torch_in_double(lambda w, factor, rank: _svd_factor(_torch_svd(w), factor, rank)),
        hyperparameters={"factor": (0, 1, 2), "rank": _RANKS},
        equation=term("svd", lambda factor, rank: f"{('U', 's', 'V^T')[factor]}, {rank}"),
    ),
    Instruction(
        name="eigen",
        arguments=_WEIGHT,
        infer=shape_rule(_eigen_shape, 2, factor=integer(0, 1), rank=integer()),
        numpy=numpy_in_double(lambda w, factor, rank: _eigen_factor(_eigen(w), factor, rank)),
        torch=torch_in_double(lambda w, factor, rank: _eigen_factor(_torch_eigen(w), factor, rank)),
        hyperparameters={"factor": (0, 1), "rank": _RANKS},
        equation=term("eigen", lambda factor, rank: f"{('Q', 'λ')[factor]}, {rank}"),
    ),
    Instruction(
        name="qr",
        arguments=_WEIGHT,
        infer=shape_rule(_qr_shape, 2, factor=integer(0, 1)),
        numpy=numpy_in_double(lambda w, factor: _qr(w)[factor]),
        torch=torch_in_double(lambda w, factor: _torch_qr(w)[factor]),
        hyperparameters={"factor": (0, 1)},
        equation=term("qr", lambda factor: "QR"[factor]),
    ),
    Instruction(
        name="cholesky",
        arguments=_WEIGHT,
        infer=shape_rule(lambda w, ridge: (w[0], w[0]), 2, ridge=RIDGE),
        numpy=numpy_in_double(_cholesky),
        torch=torch_in_double(_torch_cholesky),
        hyperparameters={"ridge": RIDGES},
        equation=term("chol", lambda ridge: f"{ridge:g}"),
    ),
)
