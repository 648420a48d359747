"""Sliding windows: the arithmetic that convolution and pooling share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

if TYPE_CHECKING:
    from gos_adapt.instructions.base import Shape

Array = np.ndarray[Any, Any]


def window_counts(
    size: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape = (1, 1)
) -> tuple[int, int]:
    """Return how many windows fit along height and width (not positive: none).

    Args:
        size: ``(h, w)``.
        kernel: ``(kh, kw)``.
        stride: ``(sh, sw)``.
        padding: ``(top, left, bottom, right)``, the order of ONNX.
        dilation: ``(dh, dw)``.
    """
    rows, columns = (
        (size[i] + padding[i] + padding[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    return rows, columns


def windows(
    x: Array, kernel: Shape, stride: Shape, padding: Shape, *, dilation: Shape = (1, 1), fill: float = 0.0
) -> Array:
    """View ``(n, c, h, w)`` as ``(n, c, rows, columns, kh, kw)``; places outside the map hold `fill`."""
    top, left, bottom, right = padding
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    extent = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    view = sliding_window_view(padded, extent, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
