"""Cross-correlation: one row that is a full, grouped, depthwise, dilated or pointwise convolution by its settings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from gos_adapt.errors import Rejection
from gos_adapt.instructions.base import Hyper, Instruction, Kind, OnnxEmitter, Shape
from gos_adapt.instructions.notation import term, window
from gos_adapt.instructions.rules import as_int, as_ints, integer, integers, shape_rule
from gos_adapt.instructions.windows import slid_shape, windows

if TYPE_CHECKING:
    from gos_adapt.instructions.windows import Array


def _shape(
    x: Shape, w: Shape, kernel: Shape, channels: int, stride: Shape, padding: Shape, dilation: Shape, groups: int
) -> Shape | Rejection:
    if x[0] % groups or channels % groups:
        return Rejection(f"{groups} groups do not divide {x[0]} into {channels} channels")
    if w != (channels, x[0] // groups, *kernel):
        return Rejection(f"weight must be {(channels, x[0] // groups, *kernel)}, got {w}")
    return slid_shape(x, channels, kernel, stride, padding, dilation)


def _weight_shapes(features: tuple[Shape, ...], hyper: Hyper) -> tuple[Shape, ...]:
    channels, groups = as_int(hyper["channels"]), as_int(hyper["groups"])
    return ((channels, features[0][0] // groups, *as_ints(hyper["kernel"])),)


def _numpy(
    x: Array,
    w: Array,
    kernel: Shape,
    channels: int,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    groups: int,
) -> Array:
    patches = windows(x, kernel, stride, padding, dilation=dilation)
    n, c, rows, columns = patches.shape[:4]
    patches = patches.reshape(n, groups, c // groups, rows, columns, *kernel)
    filters = w.reshape(groups, channels // groups, c // groups, *kernel)
    result: Array = np.einsum("ngcrskl,gockl->ngors", patches, filters, optimize=True)
    return result.reshape(n, channels, rows, columns)


def _torch(
    x: torch.Tensor,
    w: torch.Tensor,
    kernel: Shape,
    channels: int,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    groups: int,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    # `operators.torch_form` hands over the bias that follows, as `operators.onnx_form` does
    top, left, bottom, right = padding
    if (top, left) != (bottom, right):
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    if kernel == (1, 1) and (top, left) == (0, 0):
        # The gradient of a strided 1x1 convolution of few channels in channels-last order writes outside its memory
        # (oneDNN issue 6035, torch 2.13); reading every stride-th place first is the same and safe.
        x, stride = x[:, :, :: stride[0], :: stride[1]], (1, 1)
    return F.conv2d(x, w, bias, stride, (top, left), dilation, groups)


def _onnx(emitter: OnnxEmitter, names: tuple[str, ...], _shapes: tuple[Shape, ...], hyper: Hyper) -> str:
    # a third name is a bias: `operators.onnx_form` hands over the one that follows
    return emitter.node(
        "Conv",
        list(names),
        kernel_shape=list(as_ints(hyper["kernel"])),
        strides=list(as_ints(hyper["stride"])),
        pads=list(as_ints(hyper["padding"])),
        dilations=list(as_ints(hyper["dilation"])),
        group=as_int(hyper["groups"]),
    )


def _macs(arguments: tuple[Shape, ...], result: Shape, _hyper: Hyper) -> int:
    return math.prod(result) * math.prod(arguments[1][1:])


def _label(kernel: Shape, channels: int, stride: Shape, padding: Shape, dilation: Shape, groups: int) -> str:
    return window(kernel, stride, dilation) + (f", g{groups}" if groups != 1 else "")


ROWS = (
    Instruction(
        name="cross_correlation",
        arguments=(Kind.FEATURE, Kind.WEIGHT),
        infer=shape_rule(
            _shape,
            3,
            4,
            kernel=integers(2),
            channels=integer(),
            stride=integers(2),
            padding=integers(4, low=0),
            dilation=integers(2),
            groups=integer(),
        ),
        numpy=_numpy,
        torch=_torch,
        onnx=_onnx,
        hyperparameters={
            "kernel": ((1, 1), (3, 3), (5, 5), (7, 7), (1, 3), (3, 1), (1, 5), (5, 1), (2, 2), (3, 2), (2, 3)),
            "channels": (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024),
            "stride": ((1, 1), (2, 2), (1, 2), (2, 1), (4, 4)),
            "padding": (*((p, q, p, q) for p in range(4) for q in range(4)), (0, 0, 1, 1)),
            # thesis 4.5: one to three zero columns between the filter's columns
            "dilation": ((1, 1), (2, 2), (3, 3), (4, 4), (1, 2), (1, 3), (1, 4), (2, 1)),
            "groups": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        },
        weight_shapes=_weight_shapes,
        macs=_macs,
        equation=term("⋆", _label, order=(1, 0)),
    ),
)
