"""Calculus: derivatives of the table's own element-wise instructions, by sympy, and the gradient of a feature map.

A derivative that jumps has the mean of its two sides there: one half for relu at zero.

Reference: thesis, table 4.3 (gradient, partial derivative, chain rule). Deviation: they act on the equations
of instructions, named by a hyperparameter, and not on whole operators.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import sympy
import torch

from gos_adapt.errors import Rejection
from gos_adapt.instructions import activation, aggregation, probability
from gos_adapt.instructions.base import Hyper, Instruction, Kind, OnnxEmitter, Shape
from gos_adapt.instructions.expression import SYMBOLS, elementwise, function_of
from gos_adapt.instructions.notation import term
from gos_adapt.instructions.rules import as_int, integer, shape_rule, word
from gos_adapt.instructions.structure import slice_onnx

if TYPE_CHECKING:
    from gos_adapt.instructions.windows import Array

X, Y = SYMBOLS[:2]

_KNOWN = {
    row.name: function
    for row in (*activation.ROWS, *probability.ROWS, *aggregation.ROWS)
    if (function := function_of(row)) is not None
}
FUNCTIONS = {name: function for name, function in _KNOWN.items() if function.free_symbols == {X}}
"""What can be differentiated: instructions of one feature."""
JOINS = {
    name: function
    for name, function in _KNOWN.items()
    if function.free_symbols == {X, Y} and not any(sympy.diff(function, argument).is_number for argument in (X, Y))
}
"""Instructions of two features whose partial derivatives are not constants."""


def _derivative(x: sympy.Expr, of: str) -> sympy.Expr:
    return sympy.diff(FUNCTIONS[of], X).xreplace({X: x})


def _partial_derivative(a: sympy.Expr, b: sympy.Expr, of: str, argument: int) -> sympy.Expr:
    return sympy.diff(JOINS[of], (X, Y)[argument]).xreplace({X: a, Y: b})


def _chain_rule(x: sympy.Expr, outer: str, inner: str) -> sympy.Expr:
    return _derivative(FUNCTIONS[inner].xreplace({X: x}), outer) * _derivative(x, inner)


# gradient: with the differences d of neighbours, (d[i - 1] + d[i]) / 2, and d itself at both ends


def _gradient_shape(x: Shape, axis: int) -> Shape | Rejection:
    if axis >= len(x) or x[axis] < 2:
        return Rejection(f"no neighbours along axis {axis} of {x}")
    return x


def _gradient_numpy(x: Array, axis: int) -> Array:
    result: Array = np.gradient(x, axis=axis + 1)
    return result


def _gradient_torch(x: torch.Tensor, axis: int) -> torch.Tensor:
    (result,) = torch.gradient(x, dim=axis + 1)
    return result


def _gradient_onnx(emitter: OnnxEmitter, names: tuple[str, ...], shapes: tuple[Shape, ...], hyper: Hyper) -> str:
    axis = as_int(hyper["axis"])
    size = shapes[0][axis]

    def part(name: str, start: int, stop: int) -> str:
        return slice_onnx(emitter, name, (axis + 1,), (start,), (stop,), (1,))

    differences = emitter.node("Sub", [part(names[0], 1, size), part(names[0], 0, size - 1)])
    before = emitter.node("Concat", [part(differences, 0, 1), differences], axis=axis + 1)
    after = emitter.node("Concat", [differences, part(differences, size - 2, size - 1)], axis=axis + 1)
    return emitter.node("Mul", [emitter.node("Add", [before, after]), emitter.constant(np.array(0.5, np.float32))])


DERIVATIVES = (
    elementwise(
        "derivative",
        (Kind.FEATURE,),
        _derivative,
        settings={"of": word(*FUNCTIONS)},
        hyperparameters={"of": tuple(FUNCTIONS)},
    ),
    elementwise(
        "partial_derivative",
        (Kind.FEATURE, Kind.FEATURE),
        _partial_derivative,
        settings={"of": word(*JOINS), "argument": integer(0, 1)},
        hyperparameters={"of": tuple(JOINS), "argument": (0, 1)},
    ),
    elementwise(
        "chain_rule",
        (Kind.FEATURE,),
        _chain_rule,
        settings={"outer": word(*FUNCTIONS), "inner": word(*FUNCTIONS)},
        hyperparameters={"outer": tuple(FUNCTIONS), "inner": tuple(FUNCTIONS)},
    ),
)
"""``f'(x)``; ``∂f/∂a (a, b)``, or ``∂f/∂b`` for argument 1; ``f'(g(x)) g'(x)``, the derivative of ``f(g(x))``."""

ROWS = (
    *DERIVATIVES,
    Instruction(
        name="gradient",  # numpy's: central differences, one-sided at both ends; axis 0 is the channels
        arguments=(Kind.FEATURE,),
        infer=shape_rule(_gradient_shape, None, axis=integer(0, 3)),
        numpy=_gradient_numpy,
        torch=_gradient_torch,
        onnx=_gradient_onnx,
        hyperparameters={"axis": (0, 1, 2)},
        macs=lambda _arguments, result, _hyper: 3 * math.prod(result) // 2,
        equation=term("gradient", lambda axis: str(axis)),
    ),
)
