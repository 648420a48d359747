"""Norms: of a feature along its channels or over its positions, of a vector and of a matrix of weights.

Where a norm has a corner, at zero, its derivative counts as zero.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from gos_adapt.instructions.base import Hyper, Instruction, Kind, OnnxEmitter, Shape
from gos_adapt.instructions.conditioning import numpy_in_double, torch_in_double
from gos_adapt.instructions.notation import term
from gos_adapt.instructions.rules import integer, shape_rule

_FEATURE = (Kind.FEATURE,)
_WEIGHT = (Kind.WEIGHT,)
_ORDER = integer(1, 2)
_ORDERS = (1, 2)


def _vector_norm_onnx(emitter: OnnxEmitter, names: tuple[str, ...], _shapes: tuple[Shape, ...], hyper: Hyper) -> str:
    channels = emitter.constant(np.array([1], np.int64))
    if hyper["order"] == 1:
        return emitter.node("ReduceSum", [emitter.node("Abs", list(names)), channels])
    squares = emitter.node("Mul", [*names, *names])
    return emitter.node("Sqrt", [emitter.node("ReduceSum", [squares, channels])])


def _frobenius_onnx(emitter: OnnxEmitter, names: tuple[str, ...], _shapes: tuple[Shape, ...], _hyper: Hyper) -> str:
    squares = emitter.node("Mul", [*names, *names])
    positions = emitter.constant(np.array([2, 3], np.int64))
    return emitter.node("Sqrt", [emitter.node("ReduceSum", [squares, positions], keepdims=0)])


def _macs(arguments: tuple[Shape, ...], _result: Shape, _hyper: Hyper) -> int:
    return math.prod(arguments[0])


ROWS = (
    Instruction(
        name="vector_norm",
        arguments=_FEATURE,
        infer=shape_rule(lambda x, order: (1, *x[1:]), None, order=_ORDER),
        numpy=lambda x, order: np.linalg.norm(x, order, axis=1, keepdims=True),
        torch=lambda x, order: torch.linalg.vector_norm(x, order, dim=1, keepdim=True),
        onnx=_vector_norm_onnx,
        hyperparameters={"order": _ORDERS},
        macs=_macs,
        equation=term("norm", lambda order: str(order)),
    ),
    Instruction(
        name="frobenius_norm",
        arguments=_FEATURE,
        infer=shape_rule(lambda x: (x[0],), 3),
        numpy=lambda x: np.sqrt(np.square(x).sum(axis=(2, 3))),
        torch=lambda x: torch.linalg.vector_norm(x, dim=(2, 3)),
        onnx=_frobenius_onnx,
        macs=_macs,
        equation=term("norm", lambda: "F"),
    ),
    Instruction(
        name="weight_vector_norm",
        arguments=_WEIGHT,
        infer=shape_rule(lambda w, order: (1,), 1, order=_ORDER),
        numpy=numpy_in_double(lambda w, order: np.linalg.norm(w, order, axis=0, keepdims=True)),
        torch=torch_in_double(lambda w, order: torch.linalg.vector_norm(w, order, keepdim=True)),
        hyperparameters={"order": _ORDERS},
        equation=term("norm", lambda order: str(order)),
    ),
    Instruction(
        name="matrix_norm",  # induced by the vector norm of that order: largest column sum, largest singular value
        arguments=_WEIGHT,
        infer=shape_rule(lambda w, order: (1,), 2, order=_ORDER),
        numpy=numpy_in_double(lambda w, order: np.linalg.norm(w, order).reshape(1)),
        torch=torch_in_double(lambda w, order: torch.linalg.matrix_norm(w, order).reshape(1)),
        hyperparameters={"order": _ORDERS},
        equation=term("norm", lambda order: str(order)),
    ),
    Instruction(
        name="weight_frobenius_norm",
        arguments=_WEIGHT,
        infer=shape_rule(lambda w: (1,), None),
        numpy=numpy_in_double(lambda w: np.sqrt(np.square(w).sum()).reshape(1)),
        torch=torch_in_double(lambda w: torch.linalg.vector_norm(w).reshape(1)),
        equation=term("norm", lambda: "F"),
    ),
)
