"""Closed forms that turn the weight of one convolution or matrix into the weights of a cheaper relative.

Filters are ``(o, c, kh, kw)``, as in cross-correlation; matrices ``(k, n)``. Factors share the singular values evenly
(each takes the square root), which keeps them on one scale for the fine-tuning that follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gos_adapt.instructions.base import Shape

    Array = np.ndarray[Any, Any]
    Arrays = tuple[Array, ...]


def truncated_svd(matrices: Array, rank: int) -> tuple[Array, Array]:
    """Return ``a (..., m, rank)`` and ``b (..., rank, n)``: the best ``a @ b`` for ``matrices (..., m, n)``.

    A rank above ``min(m, n)`` is filled with zeros.
    """
    u, s, vt = np.linalg.svd(matrices, full_matrices=False)
    kept = min(rank, s.shape[-1])
    root = np.sqrt(s[..., :kept])
    a, b = u[..., :kept] * root[..., None, :], root[..., :, None] * vt[..., :kept, :]
    missing = [(0, 0)] * (a.ndim - 2)
    return (
        np.pad(a, [*missing, (0, 0), (0, rank - kept)]).astype(np.float32),
        np.pad(b, [*missing, (0, rank - kept), (0, 0)]).astype(np.float32),
    )


def grouped_then_pointwise(w: Array, groups: int, rank: int) -> Arrays:
    """Split along input channels: filters ``(groups * rank, c / groups, kh, kw)``, mix ``(o, groups * rank, 1, 1)``.

    One group is the low-rank form, as many groups as channels the depthwise-separable one.
    """
    o, c, kh, kw = w.shape
    mix, filters = truncated_svd(w.reshape(o, groups, -1).swapaxes(0, 1), rank)
    return (
        filters.reshape(groups * rank, c // groups, kh, kw),
        mix.swapaxes(0, 1).reshape(o, groups * rank, 1, 1),
    )


def pointwise_then_grouped(w: Array, groups: int, rank: int) -> Arrays:
    """Split along output channels: mix ``(groups * rank, c, 1, 1)``, then filters ``(o, rank, kh, kw)`` in groups."""
    o, c, kh, kw = w.shape
    blocks = w.reshape(groups, o // groups, c, kh * kw).swapaxes(1, 2).reshape(groups, c, -1)
    mix, filters = truncated_svd(blocks, rank)
    return (
        mix.swapaxes(1, 2).reshape(groups * rank, c, 1, 1),
        filters.reshape(groups, rank, o // groups, kh, kw).swapaxes(1, 2).reshape(o, rank, kh, kw),
    )


def bottleneck(w: Array, inner: int) -> Arrays:
    """Tucker-2: ``(inner, c, 1, 1)``, core ``(inner, inner, kh, kw)``, ``(o, inner, 1, 1)``.

    Reference: Kim et al., "Compression of deep convolutional neural networks for fast and low power mobile
    applications", ICLR 2016; plain higher-order SVD, without their iterations.
    """
    o, c = w.shape[:2]
    outward = _left_basis(w.reshape(o, -1), inner)
    inward = _left_basis(w.swapaxes(0, 1).reshape(c, -1), inner)
    core = np.einsum("ockl,or,cs->rskl", w, outward, inward, optimize=True)
    return inward.T.reshape(inner, c, 1, 1), core.astype(np.float32), outward.reshape(o, inner, 1, 1)


def column_then_row(w: Array, rank: int) -> Arrays:
    """Separate space: columns ``(rank, c, kh, 1)``, then rows ``(o, rank, 1, kw)``.

    Reference: Jaderberg et al., "Speeding up convolutional neural networks with low rank expansions", BMVC 2014.
    """
    o, c, kh, kw = w.shape
    columns, rows = truncated_svd(w.transpose(1, 2, 0, 3).reshape(c * kh, o * kw), rank)
    return (
        columns.T.reshape(rank, c, kh, 1),
        np.ascontiguousarray(rows.reshape(rank, o, kw).swapaxes(0, 1)).reshape(o, rank, 1, kw),
    )


def depthwise_column_then_row(w: Array) -> Arrays:
    """Separate space, each channel on its own: ``(c, 1, kh, 1)``, then ``(c, 1, 1, kw)``."""
    c, _, kh, kw = w.shape
    columns, rows = truncated_svd(w[:, 0], 1)
    return columns.reshape(c, 1, kh, 1), rows.reshape(c, 1, 1, kw)


def block_diagonal(w: Array, groups: int) -> Array:
    """Keep what a convolution in `groups` can hold: ``(o, c / groups, kh, kw)``."""
    o, c = w.shape[:2]
    blocks = w.reshape(groups, o // groups, groups, c // groups, *w.shape[2:])
    return np.ascontiguousarray(blocks[np.arange(groups), :, np.arange(groups)]).reshape(o, c // groups, *w.shape[2:])


def centre(w: Array, kernel: Shape) -> Array:
    """Keep the middle of every filter."""
    top, left = (w.shape[2] - kernel[0]) // 2, (w.shape[3] - kernel[1]) // 2
    return w[:, :, top : top + kernel[0], left : left + kernel[1]].copy()


def surrounded(w: Array, kernel: Shape) -> Array:
    """Put every filter into the middle of a larger one of zeros."""
    rows, columns = ((k - own) // 2 for k, own in zip(kernel, w.shape[2:], strict=True))
    return np.pad(w, ((0, 0), (0, 0), (rows, rows), (columns, columns)))


def he_normal(shape: Shape, rng: np.random.Generator) -> Array:
    """Draw filters, ``(channels, ...)``, or a matrix, ``(inputs, outputs)``, for a layer before a ReLU.

    Reference: He et al., "Delving deep into rectifiers", ICCV 2015, eq. 10.
    """
    fan_in = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
    return rng.normal(0.0, np.sqrt(2.0 / fan_in), shape).astype(np.float32)


def _left_basis(matrix: Array, rank: int) -> Array:
    basis: Array = np.linalg.svd(matrix, full_matrices=False)[0][:, :rank].astype(np.float32)
    return basis
