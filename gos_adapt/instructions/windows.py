"""Sliding windows: the arithmetic that convolution and pooling share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from gos_adapt.errors import Rejection
from gos_adapt.instructions.rules import MAX_ELEMENTS

if TYPE_CHECKING:
    from gos_adapt.instructions.base import Shape

Array = np.ndarray[Any, Any]


def extent(kernel: Shape, dilation: Shape) -> tuple[int, int]:
    """Height and width that a window covers."""
    rows, columns = ((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    return rows, columns


def slid_shape(
    x: Shape, channels: int, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape = (1, 1)
) -> Shape | Rejection:
    """Return the shape ``(channels, rows, columns)`` of one value for each window over a map.

    The padded map is bounded like any other value: numpy and torch hold it.

    Args:
        x: ``(c, h, w)``.
        channels: Of the result.
        kernel: ``(kh, kw)``.
        stride: ``(sh, sw)``.
        padding: ``(top, left, bottom, right)``, the order of ONNX.
        dilation: ``(dh, dw)``.
    """
    top, left, bottom, right = padding
    elements = x[0] * (x[1] + top + bottom) * (x[2] + left + right)
    if elements > MAX_ELEMENTS:
        return Rejection(f"with the padding {padding} the map has {elements} elements, more than {MAX_ELEMENTS}")
    return (channels, *window_counts(x[1:], kernel, stride, padding, dilation))


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
    covered = extent(kernel, dilation)
    rows, columns = ((size[i] + padding[i] + padding[i + 2] - covered[i]) // stride[i] + 1 for i in (0, 1))
    return rows, columns


def windows(
    x: Array, kernel: Shape, stride: Shape, padding: Shape, *, dilation: Shape = (1, 1), fill: float = 0.0
) -> Array:
    """View ``(n, c, h, w)`` as ``(n, c, rows, columns, kh, kw)``; places outside the map hold `fill`."""
    top, left, bottom, right = padding
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    view = sliding_window_view(padded, extent(kernel, dilation), axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
