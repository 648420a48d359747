"""Matrix products of features and of weights, per-channel bias and scale, and the difference of two features."""

from __future__ import annotations

import math

from gos_adapt.errors import Rejection
from gos_adapt.instructions.base import Hyper, Instruction, Kind, Shape
from gos_adapt.instructions.expression import elementwise
from gos_adapt.instructions.notation import term
from gos_adapt.instructions.rules import as_int, integer, shape_rule

_FEATURE_WEIGHT = (Kind.FEATURE, Kind.WEIGHT)
_WEIGHTS = (Kind.WEIGHT, Kind.WEIGHT)


def _matrix_product_shape(x: Shape, w: Shape, channels: int) -> Shape | Rejection:
    return (channels,) if w == (x[0], channels) else Rejection(f"weight must be {(x[0], channels)}, got {w}")


def _weight_product_shape(a: Shape, b: Shape) -> Shape | Rejection:
    return (a[0], b[1]) if a[1] == b[0] else Rejection(f"inner dimensions differ: {a} times {b}")


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
    elementwise("channel_bias", _FEATURE_WEIGHT, lambda x, w: x + w),
    elementwise("channel_scale", _FEATURE_WEIGHT, lambda x, w: x * w, initial=(1.0,)),
    elementwise("subtract", (Kind.FEATURE, Kind.FEATURE), lambda a, b: a - b),
)
