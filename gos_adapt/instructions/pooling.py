"""Pooling over windows (padding never takes part: ONNX's ``count_include_pad=0``) and over the whole map."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from gos_adapt.errors import Rejection
from gos_adapt.instructions.base import Hyper, Instruction, Kind, OnnxEmitter, Shape
from gos_adapt.instructions.notation import term, window
from gos_adapt.instructions.rules import as_ints, integers, shape_rule
from gos_adapt.instructions.windows import slid_shape, windows

if TYPE_CHECKING:
    from collections.abc import Callable

    from gos_adapt.instructions.windows import Array

_FEATURE = (Kind.FEATURE,)
_SETTINGS = {"kernel": integers(2), "stride": integers(2), "padding": integers(4, low=0)}
_VALUES = {
    "kernel": ((2, 2), (3, 3), (5, 5), (1, 2), (2, 1)),
    "stride": ((1, 1), (2, 2), (3, 3), (1, 2), (2, 1)),
    "padding": ((0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2), (0, 0, 1, 1)),
}


def _shape(x: Shape, kernel: Shape, stride: Shape, padding: Shape) -> Shape | Rejection:
    if any(padding[i] >= kernel[i % 2] for i in range(4)):
        return Rejection(f"padding {padding} must stay below the kernel {kernel}: a window may not hold padding alone")
    return slid_shape(x, x[0], kernel, stride, padding)


def _onnx(op_type: str) -> Callable[[OnnxEmitter, tuple[str, ...], tuple[Shape, ...], Hyper], str]:
    def write(emitter: OnnxEmitter, names: tuple[str, ...], _shapes: tuple[Shape, ...], hyper: Hyper) -> str:
        return emitter.node(
            op_type,
            list(names),
            kernel_shape=list(as_ints(hyper["kernel"])),
            strides=list(as_ints(hyper["stride"])),
            pads=list(as_ints(hyper["padding"])),
        )

    return write


def _max_numpy(x: Array, kernel: Shape, stride: Shape, padding: Shape) -> Array:
    result: Array = windows(x, kernel, stride, padding, fill=-math.inf).max(axis=(4, 5))
    return result


def _max_torch(x: torch.Tensor, kernel: Shape, stride: Shape, padding: Shape) -> torch.Tensor:
    return F.max_pool2d(_pad(x, padding, fill=-math.inf), kernel, stride)


def _average_numpy(x: Array, kernel: Shape, stride: Shape, padding: Shape) -> Array:
    inside = windows(np.ones((1, 1, *x.shape[2:]), x.dtype), kernel, stride, padding).sum(axis=(4, 5))
    result: Array = windows(x, kernel, stride, padding).sum(axis=(4, 5)) / inside
    return result


def _average_torch(x: torch.Tensor, kernel: Shape, stride: Shape, padding: Shape) -> torch.Tensor:
    inside = F.avg_pool2d(_pad(x.new_ones((1, 1, *x.shape[2:])), padding, fill=0), kernel, stride)
    return F.avg_pool2d(_pad(x, padding, fill=0), kernel, stride) / inside


def _pad(x: torch.Tensor, padding: Shape, *, fill: float) -> torch.Tensor:
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom), value=fill)


def _macs(_arguments: tuple[Shape, ...], result: Shape, hyper: Hyper) -> int:
    return (math.prod(result) * math.prod(as_ints(hyper["kernel"])) + 1) // 2


def _label(kernel: Shape, stride: Shape, padding: Shape) -> str:
    return window(kernel, stride)


ROWS = (
    Instruction(
        name="max_pool",
        arguments=_FEATURE,
        infer=shape_rule(_shape, 3, **_SETTINGS),
        numpy=_max_numpy,
        torch=_max_torch,
        onnx=_onnx("MaxPool"),
        hyperparameters=_VALUES,
        macs=_macs,
        equation=term("maxpool", _label),
    ),
    Instruction(
        name="average_pool",
        arguments=_FEATURE,
        infer=shape_rule(_shape, 3, **_SETTINGS),
        numpy=_average_numpy,
        torch=_average_torch,
        onnx=_onnx("AveragePool"),
        hyperparameters=_VALUES,
        macs=_macs,
        equation=term("avgpool", _label),
    ),
    Instruction(
        name="global_average_pool",
        arguments=_FEATURE,
        infer=shape_rule(lambda x: (x[0],), 3),
        numpy=lambda x: x.mean(axis=(2, 3)),
        torch=lambda x: x.mean(dim=(2, 3)),
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node(
            "Flatten", [emitter.node("GlobalAveragePool", list(names))], axis=1
        ),
        macs=lambda arguments, _result, _hyper: (math.prod(arguments[0]) + 1) // 2,
        equation=term("mean"),
    ),
)
