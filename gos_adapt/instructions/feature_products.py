"""Products of features with each other: what depends on the input twice."""

from __future__ import annotations

import math

import numpy as np

from gos_adapt.errors import Rejection
from gos_adapt.instructions.base import Hyper, Instruction, Kind, OnnxEmitter, Shape
from gos_adapt.instructions.notation import term
from gos_adapt.instructions.rules import half_mac, same_shape, shape_rule

_FEATURES = (Kind.FEATURE, Kind.FEATURE)


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


ROWS = (
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
)
