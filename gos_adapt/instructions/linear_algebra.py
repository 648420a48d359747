"""Products of features with weights and with each other, bias and scale, and the difference of two features."""

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


def _matrix_product_shape(x: Shape, w: Shape, channels: int) -> Shape | Rejection:
    return (channels,) if w == (x[0], channels) else Rejection(f"weight must be {(x[0], channels)}, got {w}")


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


def _scale_shape(x: Shape, w: Shape) -> Shape | Rejection:
    return x if w == (1,) else Rejection(f"weight must be (1,), got {w}")


def _matrix_vector_shape(a: Shape, x: Shape) -> Shape | Rejection:
    return a[:1] if a[1:] == x else Rejection(f"inner dimensions differ: {a} times {x}")


def _dot_shape(a: Shape, b: Shape) -> Shape | Rejection:
    shape = same_shape(a, b)
    return shape if isinstance(shape, Rejection) else (1, *shape[1:])


def _axis(emitter: OnnxEmitter, axis: int) -> str:
    return emitter.constant(np.array([axis], np.int64))


def _matrix_vector_onnx(emitter: OnnxEmitter, names: tuple[str, ...], _shapes: tuple[Shape, ...], _hyper: Hyper) -> str:
    matrix, vector = names
    column = emitter.node("Unsqueeze", [vector, _axis(emitter, 2)])
    return emitter.node("Squeeze", [emitter.node("MatMul", [matrix, column]), _axis(emitter, 2)])


def _dot_onnx(emitter: OnnxEmitter, names: tuple[str, ...], _shapes: tuple[Shape, ...], _hyper: Hyper) -> str:
    return emitter.node("ReduceSum", [emitter.node("Mul", list(names)), _axis(emitter, 1)])


def _outer_onnx(emitter: OnnxEmitter, names: tuple[str, ...], _shapes: tuple[Shape, ...], _hyper: Hyper) -> str:
    column = emitter.node("Unsqueeze", [names[0], _axis(emitter, 2)])
    return emitter.node("Mul", [column, emitter.node("Unsqueeze", [names[1], _axis(emitter, 1)])])


def _first_argument_macs(arguments: tuple[Shape, ...], _result: Shape, _hyper: Hyper) -> int:
    return math.prod(arguments[0])


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
        name="matrix_vector_product",
        arguments=_FEATURES,
        infer=shape_rule(_matrix_vector_shape, 2, 1),
        numpy=lambda a, x: (a @ x[:, :, None])[:, :, 0],
        torch=lambda a, x: (a @ x[:, :, None])[:, :, 0],
        onnx=_matrix_vector_onnx,
        macs=_first_argument_macs,
        equation=term("·"),
    ),
    Instruction(
        name="dot_product",
        arguments=_FEATURES,
        infer=shape_rule(_dot_shape, None, None),
        numpy=lambda a, b: (a * b).sum(axis=1, keepdims=True),
        torch=lambda a, b: (a * b).sum(dim=1, keepdim=True),
        onnx=_dot_onnx,
        macs=_first_argument_macs,
        equation=term("·"),
        commutative=True,
    ),
    Instruction(
        name="outer_product",
        arguments=_FEATURES,
        infer=shape_rule(lambda a, b: (*a, *b), 1, 1),
        numpy=lambda a, b: a[:, :, None] * b[:, None, :],
        torch=lambda a, b: a[:, :, None] * b[:, None, :],
        onnx=_outer_onnx,
        macs=half_mac,
        equation=term("outer"),
    ),
    Instruction(
        name="channel_bias",
        arguments=_FEATURE_WEIGHT,
        infer=shape_rule(_per_channel_shape, None, 1),
        numpy=lambda x, w: x + _along_channels(x, w),
        torch=lambda x, w: x + _along_channels(x, w),
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
        torch=lambda x, w: x * _along_channels(x, w),
        onnx=lambda emitter, names, shapes, _hyper: _per_channel_onnx("Mul", emitter, names, shapes),
        weight_shapes=_per_channel_weight,
        macs=half_mac,
        equation=lambda x, w: x * w,
    ),
    Instruction(
        name="scale",
        arguments=_FEATURE_WEIGHT,
        infer=shape_rule(_scale_shape, None, 1),
        numpy=lambda x, w: x * w,
        torch=lambda x, w: x * w,
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("Mul", list(names)),
        weight_shapes=lambda _features, _hyper: ((1,),),
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
