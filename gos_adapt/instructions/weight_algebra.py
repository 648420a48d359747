"""Sums and products of weights, their rearrangement, and constant matrices: all folded before anything is compiled.

A layer's weight is what a chain of these makes of its leaves: factors of low rank, Kronecker factors, a scaled or tied
matrix. Filters become matrices and matrices filters by `weight_reshape` and `weight_transpose`.

Reference: thesis, table 4.3. `diagonal_matrix`, `weight_reshape` and `weight_transpose` are ours: without them the
factors of a decomposition cannot be multiplied again, nor be those of a convolution.
"""

from __future__ import annotations

import math

import numpy as np
import sympy
import torch

from gos_adapt.errors import Rejection
from gos_adapt.instructions.base import HyperValue, Instruction, Kind, Shape
from gos_adapt.instructions.notation import by, term
from gos_adapt.instructions.rules import Legal, any_shape, integer, integers, same_shape, shape_rule

_WEIGHT = (Kind.WEIGHT,)
_WEIGHTS = (Kind.WEIGHT, Kind.WEIGHT)


def _matrix_vector_shape(a: Shape, b: Shape) -> Shape | Rejection:
    return a[:1] if a[1:] == b else Rejection(f"inner dimensions differ: {a} times {b}")


def _dot_shape(a: Shape, b: Shape) -> Shape | Rejection:
    shape = same_shape(a, b)
    return shape if isinstance(shape, Rejection) else (1,)


def _reshape_shape(w: Shape, shape: Shape) -> Shape | Rejection:
    return shape if math.prod(w) == math.prod(shape) else Rejection(f"{w} does not hold as many elements as {shape}")


def _is_permutation(value: HyperValue) -> bool:
    return isinstance(value, tuple) and len(value) <= 4 and sorted(value) == list(range(len(value)))


def _transpose_shape(w: Shape, axes: Shape) -> Shape | Rejection:
    if len(axes) != len(w):
        return Rejection(f"{len(axes)} axes of {w}")
    return tuple(w[axis] for axis in axes)


ROWS = (
    Instruction(
        name="weight_add",
        arguments=_WEIGHTS,
        infer=shape_rule(same_shape, None, None),
        numpy=np.add,
        torch=torch.add,
        equation=lambda a, b: a + b,
        commutative=True,
    ),
    Instruction(
        name="weight_subtract",
        arguments=_WEIGHTS,
        infer=shape_rule(same_shape, None, None),
        numpy=np.subtract,
        torch=torch.sub,
        equation=lambda a, b: a - b,
    ),
    Instruction(
        name="weight_hadamard",
        arguments=_WEIGHTS,
        infer=shape_rule(same_shape, None, None),
        numpy=np.multiply,
        torch=torch.mul,
        equation=lambda a, b: a * b,
        commutative=True,
    ),
    Instruction(
        name="weight_matrix_vector_product",
        arguments=_WEIGHTS,
        infer=shape_rule(_matrix_vector_shape, 2, 1),
        numpy=np.matmul,
        torch=torch.matmul,
        equation=term("·"),
    ),
    Instruction(
        name="weight_dot_product",
        arguments=_WEIGHTS,
        infer=shape_rule(_dot_shape, 1, 1),
        numpy=lambda a, b: (a @ b).reshape(1),
        torch=lambda a, b: (a @ b).reshape(1),
        equation=term("·"),
        commutative=True,
    ),
    Instruction(
        name="weight_outer_product",
        arguments=_WEIGHTS,
        infer=shape_rule(lambda a, b: (*a, *b), 1, 1),
        numpy=np.outer,
        torch=torch.outer,
        equation=term("outer"),
    ),
    Instruction(
        name="kronecker_product",
        arguments=_WEIGHTS,
        infer=shape_rule(lambda a, b: (a[0] * b[0], a[1] * b[1]), 2, 2),
        numpy=np.kron,
        torch=torch.kron,
        equation=term("⊗"),
    ),
    Instruction(
        name="weight_reshape",
        arguments=_WEIGHT,
        infer=shape_rule(_reshape_shape, None, shape=any_shape()),
        numpy=lambda w, shape: w.reshape(shape),
        torch=lambda w, shape: w.reshape(shape),
        equation=term("reshape", lambda shape: by(shape)),
    ),
    Instruction(
        name="weight_transpose",
        arguments=_WEIGHT,
        infer=shape_rule(_transpose_shape, None, axes=Legal("a permutation of at most 4 axes", _is_permutation)),
        numpy=lambda w, axes: w.transpose(axes),
        torch=lambda w, axes: w.permute(axes),
        hyperparameters={"axes": ((1, 0), (1, 0, 2, 3), (0, 1, 3, 2), (1, 2, 0, 3))},
        equation=term("transpose", lambda axes: ", ".join(map(str, axes))),
    ),
    Instruction(
        name="diagonal_matrix",
        arguments=_WEIGHT,
        infer=shape_rule(lambda w: (w[0], w[0]), 1),
        numpy=np.diag,
        torch=torch.diag,
        equation=term("diag"),
    ),
    Instruction(
        name="identity_matrix",
        arguments=(),
        infer=shape_rule(lambda size: (size, size), size=integer()),
        numpy=lambda size: np.eye(size, dtype=np.float32),
        torch=lambda size: torch.eye(size),
        equation=lambda size: sympy.Symbol(f"I_{size}", real=True),
    ),
    Instruction(
        name="zero_matrix",
        arguments=(),
        infer=shape_rule(lambda shape: shape, shape=integers(2)),
        numpy=lambda shape: np.zeros(shape, np.float32),
        torch=lambda shape: torch.zeros(shape),
        equation=lambda shape: sympy.Integer(0),
    ),
)
