"""Winograd's minimal filtering: a window of three over m outputs with m + 2 multiplications instead of 3 m.

    outputs = output_transform(input_transform(inputs) * weight_transform(window))

The algorithms are F(2, 3) and F(4, 3) of A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks",
2016, arXiv:1509.09308, section 4. Nested in itself, an algorithm gives m x m outputs of a 3x3 window. The transforms of
inputs and outputs are written as the additions there are, for whatever adds; those of the weights as matrices, because
they are computed only once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    Array = np.ndarray[Any, Any]

WINDOW = 3


def _inputs_of_2(a: Any, b: Any, c: Any, d: Any) -> tuple[Any, ...]:
    return a - c, b + c, c - b, b - d


def _outputs_of_2(a: Any, b: Any, c: Any, d: Any) -> tuple[Any, ...]:
    return a + b + c, b - c - d


def _inputs_of_4(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> tuple[Any, ...]:
    even, odd = e - c * 4, d - b * 4
    near, far = e - c, (d - b) * 2
    return a * 4 + (e - c * 5), even + odd, even - odd, near + far, near - far, b * 4 + (f - d * 5)


def _outputs_of_4(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> tuple[Any, ...]:
    even, odd = b + c, b - c
    near, far = d + e, d - e
    return a + even + near, odd + far * 2, even + near * 4, odd + far * 8 + f


INPUT_TRANSFORMS: dict[int, Callable[..., tuple[Any, ...]]] = {2: _inputs_of_2, 4: _inputs_of_4}
"""By m: m + 2 neighbouring inputs -> m + 2 left factors."""

OUTPUT_TRANSFORMS: dict[int, Callable[..., tuple[Any, ...]]] = {2: _outputs_of_2, 4: _outputs_of_4}
"""By m: m + 2 products -> m neighbouring outputs."""

WEIGHT_TRANSFORMS: dict[int, Array] = {
    2: np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
    4: np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
}
"""By m: the matrix that takes a window of three to m + 2 right factors."""


def transform_weights(weights: Array, m: int) -> Array:
    """Transform 3x3 windows both ways, in double precision.

    Args:
        weights: Of shape (..., 3, 3).
        m: Outputs along each side of a tile.

    Returns:
        Of shape ((m + 2)², ...) and the dtype of `weights`.
    """
    matrix = WEIGHT_TRANSFORMS[m]
    factors = matrix @ weights.astype(np.float64) @ matrix.T
    return np.moveaxis(factors.reshape(*weights.shape[:-2], -1), -1, 0).astype(weights.dtype)
