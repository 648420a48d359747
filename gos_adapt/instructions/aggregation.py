"""What joins two features: the rows a mutation may swap for one another."""

from __future__ import annotations

import math

import numpy as np
import sympy
import torch

from gos_adapt.errors import Rejection
from gos_adapt.instructions.base import Hyper, Instruction, Kind, OnnxEmitter, Shape
from gos_adapt.instructions.notation import term
from gos_adapt.instructions.rules import half_mac, same_shape, shape_rule

_FEATURES = (Kind.FEATURE, Kind.FEATURE)


def _mean_onnx(emitter: OnnxEmitter, names: tuple[str, ...], _shapes: tuple[Shape, ...], _hyper: Hyper) -> str:
    return emitter.node("Mul", [emitter.node("Add", list(names)), emitter.constant(np.array(0.5, np.float32))])


def _mean_macs(_arguments: tuple[Shape, ...], result: Shape, _hyper: Hyper) -> int:
    return math.prod(result)


def _concat_shape(a: Shape, b: Shape) -> Shape | Rejection:
    if a[1:] != b[1:]:
        return Rejection(f"shapes must agree after the channels, got {a} and {b}")
    return (a[0] + b[0], *a[1:])


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
)
