"""Unfold: the patches under a sliding window as channels, so that a convolution is a product with one matrix per place.

Reference: Chellapilla et al., "High performance convolutional neural networks for document processing", IWFHR 2006.
Deviation: taps come before channels (``torch.nn.functional.unfold``: after), so that every tap is one copy of the map.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from gos_adapt.instructions.base import Hyper, Instruction, Kind, OnnxEmitter, Shape
from gos_adapt.instructions.notation import term, window
from gos_adapt.instructions.rules import as_ints, integers, shape_rule
from gos_adapt.instructions.structure import slice_onnx
from gos_adapt.instructions.windows import slid_shape, window_counts, windows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gos_adapt.errors import Rejection
    from gos_adapt.instructions.windows import Array

MAX_SIDE = 16
"""Of the kernel: every tap is a slice in ONNX and TVM."""


def taps(size: Shape, hyper: Hyper) -> Iterator[tuple[Shape, Shape]]:
    """Yield ``(starts, stops)`` of each tap in the padded map, rows first; its steps are the stride.

    Args:
        size: ``(h, w)``, without padding.
        hyper: Settings of the instruction.
    """
    kernel, stride, padding, dilation = (as_ints(hyper[k]) for k in ("kernel", "stride", "padding", "dilation"))
    counts = window_counts(size, kernel, stride, padding, dilation)
    for tap in np.ndindex(*kernel):
        starts = tuple(t * d for t, d in zip(tap, dilation, strict=True))
        yield starts, tuple(a + s * (n - 1) + 1 for a, s, n in zip(starts, stride, counts, strict=True))


def _shape(x: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> Shape | Rejection:
    return slid_shape(x, math.prod(kernel) * x[0], kernel, stride, padding, dilation)


def _numpy(x: Array, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> Array:
    patches = windows(x, kernel, stride, padding, dilation=dilation)
    n, c, rows, columns = patches.shape[:4]
    return patches.transpose(0, 4, 5, 1, 2, 3).reshape(n, math.prod(kernel) * c, rows, columns)


def _torch(x: torch.Tensor, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> torch.Tensor:
    hyper = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    top, left, bottom, right = padding
    padded = F.pad(x, (left, right, top, bottom))
    parts = [
        padded[:, :, first[0] : last[0] : stride[0], first[1] : last[1] : stride[1]]
        for first, last in taps(tuple(x.shape[2:]), hyper)
    ]
    return torch.cat(parts, dim=1)


def _onnx(emitter: OnnxEmitter, names: tuple[str, ...], shapes: tuple[Shape, ...], hyper: Hyper) -> str:
    top, left, bottom, right = as_ints(hyper["padding"])
    pads = np.array((0, 0, top, left, 0, 0, bottom, right), np.int64)
    padded = emitter.node("Pad", [names[0], emitter.constant(pads)]) if pads.any() else names[0]
    stride = as_ints(hyper["stride"])
    parts = [slice_onnx(emitter, padded, (2, 3), starts, stops, stride) for starts, stops in taps(shapes[0][1:], hyper)]
    return emitter.node("Concat", parts, axis=1)


def _label(kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> str:
    return window(kernel, stride, dilation)


ROWS = (
    Instruction(
        name="unfold",
        arguments=(Kind.FEATURE,),
        infer=shape_rule(
            _shape,
            3,
            kernel=integers(2, high=MAX_SIDE),
            stride=integers(2),
            padding=integers(4, low=0),
            dilation=integers(2),
        ),
        numpy=_numpy,
        torch=_torch,
        onnx=_onnx,
        hyperparameters={
            "kernel": ((2, 2), (3, 3), (1, 3), (3, 1), (5, 5)),
            "stride": ((1, 1), (2, 2), (1, 2), (2, 1)),
            "padding": ((0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 1), (1, 0, 1, 0), (2, 2, 2, 2)),
            "dilation": ((1, 1), (2, 2), (1, 2)),
        },
        equation=term("unfold", _label),
    ),
)
