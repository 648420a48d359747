"""Activations: element-wise functions of one feature, and softmax over the channels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import sympy
import torch
import torch.nn.functional as F

from gos_adapt.instructions.base import Hyper, Instruction, Kind, Shape
from gos_adapt.instructions.expression import NUMPY, sigmoid
from gos_adapt.instructions.notation import term
from gos_adapt.instructions.rules import half_mac, number, same_shape, shape_rule

if TYPE_CHECKING:
    from gos_adapt.instructions.windows import Array

_FEATURE = (Kind.FEATURE,)


def _softmax_numpy(x: Array) -> Array:
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    result: Array = powers / powers.sum(axis=1, keepdims=True)
    return result


def _softmax_macs(_arguments: tuple[Shape, ...], result: Shape, _hyper: Hyper) -> int:
    return 2 * math.prod(result)  # subtract, exponential, sum, divide


def _bound(value: float) -> Array:
    return np.array(value, np.float32)


ROWS = (
    Instruction(
        name="relu",
        arguments=_FEATURE,
        infer=shape_rule(same_shape, None),
        numpy=lambda x: np.maximum(x, 0),
        torch=F.relu,
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("Relu", list(names)),
        macs=half_mac,
        equation=lambda x: sympy.Max(0, x),
    ),
    Instruction(
        name="relu6",
        arguments=_FEATURE,
        infer=shape_rule(same_shape, None),
        numpy=lambda x: np.clip(x, 0, 6),
        torch=F.relu6,
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node(
            "Clip", [*names, emitter.constant(_bound(0)), emitter.constant(_bound(6))]
        ),
        macs=half_mac,
        equation=lambda x: sympy.Min(6, sympy.Max(0, x)),
    ),
    Instruction(
        name="leaky_relu",
        arguments=_FEATURE,
        infer=shape_rule(lambda x, slope: x, None, slope=number(0.0, 1.0)),
        numpy=lambda x, slope: np.where(x < 0, x * x.dtype.type(slope), x),
        torch=lambda x, slope: F.leaky_relu(x, slope),
        onnx=lambda emitter, names, _shapes, hyper: emitter.node("LeakyRelu", list(names), alpha=hyper["slope"]),
        hyperparameters={"slope": (0.01, 0.03)},  # thesis 4.5
        macs=half_mac,
        equation=lambda x, slope: sympy.Max(x, sympy.Float(str(slope)) * x),
    ),
    Instruction(
        name="sigmoid",
        arguments=_FEATURE,
        infer=shape_rule(same_shape, None),
        numpy=NUMPY["sigmoid"],
        torch=torch.sigmoid,
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("Sigmoid", list(names)),
        macs=half_mac,
        equation=sigmoid,
    ),
    Instruction(
        name="hard_sigmoid",
        arguments=_FEATURE,
        infer=shape_rule(same_shape, None),
        numpy=lambda x: np.clip(x + 3, 0, 6) / 6,
        torch=F.hardsigmoid,
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("HardSigmoid", list(names), alpha=1 / 6, beta=0.5),
        macs=half_mac,
        equation=lambda x: sympy.Min(6, sympy.Max(0, x + 3)) / 6,
    ),
    Instruction(
        name="tanh",
        arguments=_FEATURE,
        infer=shape_rule(same_shape, None),
        numpy=np.tanh,
        torch=torch.tanh,
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("Tanh", list(names)),
        macs=half_mac,
        equation=sympy.tanh,
    ),
    Instruction(
        name="hard_swish",
        arguments=_FEATURE,
        infer=shape_rule(same_shape, None),
        numpy=lambda x: x * np.clip(x + 3, 0, 6) / 6,
        torch=F.hardswish,
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("HardSwish", list(names)),
        macs=half_mac,
        equation=lambda x: x * sympy.Min(6, sympy.Max(0, x + 3)) / 6,
    ),
    Instruction(
        name="softmax",
        arguments=_FEATURE,
        infer=shape_rule(same_shape, None),
        numpy=_softmax_numpy,
        torch=lambda x: torch.softmax(x, dim=1),
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("Softmax", list(names), axis=1),
        macs=_softmax_macs,
        equation=term("softmax"),
    ),
)
