"""Aggregation: what joins two features (a mutation may swap these for one another) or the elements along one axis.

Reference: thesis, table 4.3 (sum, mean, maximum, minimum, square root, concatenation, weighted mean).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import sympy
import torch

from gos_adapt.errors import Rejection
from gos_adapt.instructions.base import Hyper, Instruction, Kind, OnnxEmitter, Shape
from gos_adapt.instructions.expression import elementwise
from gos_adapt.instructions.notation import term
from gos_adapt.instructions.rules import as_int, half_mac, integer, same_shape, shape_rule
from gos_adapt.instructions.structure import reshape_onnx

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from gos_adapt.instructions.windows import Array

    OnnxForm = Callable[[OnnxEmitter, tuple[str, ...], tuple[Shape, ...], Hyper], str]

_FEATURES = (Kind.FEATURE, Kind.FEATURE)

SMALLEST = sympy.Float("1e-4")
"""Square roots are of at least this, and quotients exact for divisors of at least its root: gradients stay finite."""


def _mean_onnx(emitter: OnnxEmitter, names: tuple[str, ...], _shapes: tuple[Shape, ...], _hyper: Hyper) -> str:
    return emitter.node("Mul", [emitter.node("Add", list(names)), emitter.constant(np.array(0.5, np.float32))])


def _mean_macs(_arguments: tuple[Shape, ...], result: Shape, _hyper: Hyper) -> int:
    return math.prod(result)


def _concat_shape(a: Shape, b: Shape) -> Shape | Rejection:
    if a[1:] != b[1:]:
        return Rejection(f"shapes must agree after the channels, got {a} and {b}")
    return (a[0] + b[0], *a[1:])


# Reductions: pools of a view (before, axis, after), since ONNX's own reductions take the axis as an attribute or as an
# input, depending on the operator set


def _along_shape(x: Shape, axis: int) -> Shape | Rejection:
    return (*x[:axis], 1, *x[axis + 1 :]) if axis < len(x) else Rejection(f"no axis {axis} in {x}")


def _along_onnx(emitter: OnnxEmitter, pool: str, name: str, shape: Shape, hyper: Hyper) -> str:
    axis = as_int(hyper["axis"])
    view = reshape_onnx(emitter, name, (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])))
    pooled = emitter.node(pool, [view], kernel_shape=[shape[axis], 1])
    return reshape_onnx(emitter, pooled, (*shape[:axis], 1, *shape[axis + 1 :]))


def _sum_onnx(emitter: OnnxEmitter, names: tuple[str, ...], _shapes: tuple[Shape, ...], hyper: Hyper) -> str:
    axis = emitter.constant(np.array([as_int(hyper["axis"]) + 1], np.int64))
    return emitter.node("ReduceSum", [names[0], axis], keepdims=1)


def _minimum_onnx(emitter: OnnxEmitter, names: tuple[str, ...], shapes: tuple[Shape, ...], hyper: Hyper) -> str:
    negative = emitter.node("Neg", list(names))
    return emitter.node("Neg", [_along_onnx(emitter, "MaxPool", negative, shapes[0], hyper)])


def _along_row(name: str, numpy: Callable[..., Array], torch: Callable[..., Tensor], onnx: OnnxForm) -> Instruction:
    """One reduction along an axis (0: the channels), which stays with length one."""
    return Instruction(
        name=f"{name}_along",
        arguments=(Kind.FEATURE,),
        infer=shape_rule(_along_shape, None, axis=integer(0, 3)),
        numpy=lambda x, axis: numpy(x, axis=axis + 1, keepdims=True),
        torch=lambda x, axis: torch(x, dim=axis + 1, keepdim=True),
        onnx=onnx,
        hyperparameters={"axis": (0, 1, 2)},
        macs=lambda arguments, _result, _hyper: (math.prod(arguments[0]) + 1) // 2,
        equation=term(name, lambda axis: str(axis)),
    )


ALONG = (
    _along_row("sum", np.sum, torch.sum, _sum_onnx),
    _along_row(
        "mean",
        np.mean,
        torch.mean,
        lambda emitter, names, shapes, hyper: _along_onnx(emitter, "AveragePool", names[0], shapes[0], hyper),
    ),
    _along_row(
        "maximum",
        np.max,
        torch.amax,
        lambda emitter, names, shapes, hyper: _along_onnx(emitter, "MaxPool", names[0], shapes[0], hyper),
    ),
    _along_row("minimum", np.min, torch.amin, _minimum_onnx),
)

ELEMENTWISE = (
    elementwise(
        "divide",  # a / b, and zero where b is: the quotient is a b / b² as long as b² is not too small
        _FEATURES,
        lambda a, b: a * b / sympy.Max(b**2, SMALLEST),
        aggregation=True,
    ),
    elementwise(
        "weighted_mean",
        (*_FEATURES, Kind.WEIGHT),
        lambda a, b, w: w * a + (1 - w) * b,
        initial=(0.5,),
        aggregation=True,
    ),
    elementwise(
        "weighted_sum",
        (*_FEATURES, Kind.WEIGHT, Kind.WEIGHT),
        lambda a, b, v, w: v * a + w * b,
        initial=(1.0, 1.0),
        aggregation=True,
    ),
    elementwise("square_root", (Kind.FEATURE,), lambda x: sympy.sqrt(sympy.Max(x, SMALLEST))),
    elementwise(
        "power",
        (Kind.FEATURE,),
        lambda x, exponent: x**exponent,
        settings={"exponent": integer(2, 8)},
        hyperparameters={"exponent": (2, 3)},  # thesis 4.5: normalisation by a cubic
    ),
)

ROWS = (
    Instruction(
        name="add",
        arguments=_FEATURES,
        infer=shape_rule(same_shape, None, None),
        numpy=np.add,
        torch=torch.add,
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("Add", list(names)),
        macs=half_mac,
        equation=lambda a, b: a + b,
        commutative=True,
        aggregation=True,
    ),
    Instruction(
        name="mean",
        arguments=_FEATURES,
        infer=shape_rule(same_shape, None, None),
        numpy=lambda a, b: (a + b) * 0.5,
        torch=lambda a, b: (a + b) * 0.5,
        onnx=_mean_onnx,
        macs=_mean_macs,
        equation=lambda a, b: (a + b) / 2,
        commutative=True,
        aggregation=True,
    ),
    Instruction(
        name="hadamard",
        arguments=_FEATURES,
        infer=shape_rule(same_shape, None, None),
        numpy=np.multiply,
        torch=torch.mul,
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("Mul", list(names)),
        macs=half_mac,
        equation=lambda a, b: a * b,
        commutative=True,
        aggregation=True,
    ),
    Instruction(
        name="maximum",
        arguments=_FEATURES,
        infer=shape_rule(same_shape, None, None),
        numpy=np.maximum,
        torch=torch.maximum,
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("Max", list(names)),
        macs=half_mac,
        equation=sympy.Max,
        commutative=True,
        aggregation=True,
    ),
    Instruction(
        name="minimum",
        arguments=_FEATURES,
        infer=shape_rule(same_shape, None, None),
        numpy=np.minimum,
        torch=torch.minimum,
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("Min", list(names)),
        macs=half_mac,
        equation=sympy.Min,
        commutative=True,
        aggregation=True,
    ),
    Instruction(
        name="concat",
        arguments=_FEATURES,
        infer=shape_rule(_concat_shape, None, None),
        numpy=lambda a, b: np.concatenate((a, b), axis=1),
        torch=lambda a, b: torch.cat((a, b), dim=1),
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("Concat", list(names), axis=1),
        equation=term("concat"),
        aggregation=True,
    ),
    *ELEMENTWISE,
    *ALONG,
)
