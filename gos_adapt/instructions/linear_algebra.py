"""Matrix products of features and of weights, per-channel bias and scale, and the difference of two features."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch

from gos_adapt.errors import Rejection
from gos_adapt.instructions.base import Hyper, Instruction, Kind, OnnxEmitter, Shape
from gos_adapt.instructions.notation import term
from gos_adapt.instructions.rules import as_int, half_mac, integer, same_shape, shape_rule

Tensor = TypeVar("Tensor", "np.ndarray[tuple[int, ...], np.dtype[np.float32]]", torch.Tensor)

_FEATURES = (Kind.FEATURE, Kind.FEATURE)
_FEATURE_WEIGHT = (Kind.FEATURE, Kind.WEIGHT)
_WEIGHTS = (Kind.WEIGHT, Kind.WEIGHT)


def _matrix_product_shape(x: Shape, w: Shape, channels: int) -> Shape | Rejection:
    return (channels,) if w == (x[0], channels) else Rejection(f"weight must be {(x[0], channels)}, got {w}")


def _weight_product_shape(a: Shape, b: Shape) -> Shape | Rejection:
    return (a[0], b[1]) if a[1] == b[0] else Rejection(f"inner dimensions differ: {a} times {b}")


def _per_channel_shape(x: Shape, w: Shape) -> Shape | Rejection:
    return x if w == (x[0],) else Rejection(f"weight must be {(x[0],)}, got {w}")


def _per_channel_weight(features: tuple[Shape, ...], _hyper: Hyper) -> tuple[Shape, ...]:
    return ((features[0][0],),)


def _along_channels(x: Tensor, w: Tensor) -> Tensor:
    """Shape ``(c,)`` so that it broadcasts against ``(n, c, ...)``."""
    return w.reshape((-1,) + (1,) * (x.ndim - 2))


def _per_channel_onnx(op_type: str, emitter: OnnxEmitter, names: tuple[str, ...], shapes: tuple[Shape, ...]) -> str:
    feature, weight = names
    rank = len(shapes[0])
    if rank > 1:
        weight = emitter.node("Reshape", [weight, emitter.constant(np.array([-1] + [1] * (rank - 1), np.int64))])
    return emitter.node(op_type, [feature, weight])


def _product_macs(arguments: tuple[Shape, ...], result: Shape, _hyper: Hyper) -> int:
    return math.prod(result) * arguments[1][0]


ROWS = (
    Instruction(
        name="matrix_product",
        arguments=_FEATURE_WEIGHT,
        infer=shape_rule(_matrix_product_shape, 1, 2, channels=integer()),
        numpy=lambda x, w, channels: x @ w,
        torch=lambda x, w, channels: x @ w,
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("MatMul", list(names)),
        hyperparameters={"channels": (4, 8, 16, 32, 64, 128, 256, 512, 1024)},
        weight_shapes=lambda features, hyper: ((features[0][0], as_int(hyper["channels"])),),
        macs=_product_macs,
        equation=term("·"),
    ),
    Instruction(
        name="weight_product",
        arguments=_WEIGHTS,
        infer=shape_rule(_weight_product_shape, 2, 2),
        numpy=lambda a, b: a @ b,
        torch=lambda a, b: a @ b,
        equation=term("·"),
    ),
    Instruction(
        name="channel_bias",
        arguments=_FEATURE_WEIGHT,
        infer=shape_rule(_per_channel_shape, None, 1),
        numpy=lambda x, w: x + _along_channels(x, w),
        torch=lambda x, w: x + _along_channels(x, w.to(x.dtype)),  # which may be bfloat16, and stays it
        onnx=lambda emitter, names, shapes, _hyper: _per_channel_onnx("Add", emitter, names, shapes),
        weight_shapes=_per_channel_weight,
        macs=half_mac,
        equation=lambda x, w: x + w,
    ),
    Instruction(
        name="channel_scale",
        arguments=_FEATURE_WEIGHT,
        infer=shape_rule(_per_channel_shape, None, 1),
        numpy=lambda x, w: x * _along_channels(x, w),
        torch=lambda x, w: x * _along_channels(x, w.to(x.dtype)),
        onnx=lambda emitter, names, shapes, _hyper: _per_channel_onnx("Mul", emitter, names, shapes),
        weight_shapes=_per_channel_weight,
        macs=half_mac,
        equation=lambda x, w: x * w,
    ),
    Instruction(
        name="subtract",
        arguments=_FEATURES,
        infer=shape_rule(same_shape, None, None),
        numpy=lambda a, b: a - b,
        torch=lambda a, b: a - b,
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("Sub", list(names)),
        macs=half_mac,
        equation=lambda a, b: a - b,
    ),
)
