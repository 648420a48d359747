"""Probability: densities as activations, and Bayes' rule over the channels.

A density with another mean and deviation is a `channel_bias` and a `channel_scale` before it; the categorical
distribution is `softmax`; Bayes' rule on logarithms is a `channel_bias` before that.

Reference: thesis, table 4.3.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import sympy

from gos_adapt.errors import Rejection
from gos_adapt.instructions.base import Hyper, Instruction, Kind, OnnxEmitter, Shape
from gos_adapt.instructions.expression import elementwise, sigmoid
from gos_adapt.instructions.notation import term
from gos_adapt.instructions.rules import shape_rule

if TYPE_CHECKING:
    import torch

    from gos_adapt.instructions.windows import Array

EVIDENCE = 1e-6
"""Least evidence that Bayes' rule divides by."""


def _bayes_shape(x: Shape, w: Shape) -> Shape | Rejection:
    return x if w == (x[0],) else Rejection(f"prior must be {(x[0],)}, got {w}")


def _bayes_numpy(x: Array, w: Array) -> Array:
    joint = np.abs(x * w.reshape((-1,) + (1,) * (x.ndim - 2)))
    result: Array = joint / np.maximum(joint.sum(axis=1, keepdims=True), EVIDENCE)
    return result


def _bayes_torch(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    joint = (x * w.reshape((-1,) + (1,) * (x.ndim - 2))).abs()
    return joint / joint.sum(dim=1, keepdim=True).clamp(min=EVIDENCE)


def _bayes_onnx(emitter: OnnxEmitter, names: tuple[str, ...], shapes: tuple[Shape, ...], _hyper: Hyper) -> str:
    likelihood, prior = names
    along = emitter.constant(np.array([-1] + [1] * (len(shapes[0]) - 1), np.int64))
    joint = emitter.node("Abs", [emitter.node("Mul", [likelihood, emitter.node("Reshape", [prior, along])])])
    evidence = emitter.node("ReduceSum", [joint, emitter.constant(np.array([1], np.int64))], keepdims=1)
    least = emitter.constant(np.array(EVIDENCE, np.float32))
    return emitter.node("Div", [joint, emitter.node("Max", [evidence, least])])


DENSITIES = (
    elementwise("normal_density", (Kind.FEATURE,), lambda x: sympy.exp(-(x**2) / 2) / sympy.sqrt(2 * sympy.pi)),
    elementwise("laplace_density", (Kind.FEATURE,), lambda x: sympy.exp(-sympy.Abs(x)) / 2),
    elementwise("logistic_density", (Kind.FEATURE,), lambda x: sigmoid(x) * sigmoid(-x)),
)
"""Of mean zero and scale one."""

ROWS = (
    *DENSITIES,
    Instruction(
        # Posterior p_c x_c / Σ p_c x_c of the classes c along the channels, from likelihoods x and a prior p. Features
        # and trained weights have signs: magnitudes count. Where there is no evidence for anything, it is zero.
        name="bayes_rule",
        arguments=(Kind.FEATURE, Kind.WEIGHT),
        infer=shape_rule(_bayes_shape, None, 1),
        numpy=_bayes_numpy,
        torch=_bayes_torch,
        onnx=_bayes_onnx,
        weight_shapes=lambda features, _hyper: ((features[0][0],),),
        initial=(1.0,),
        macs=lambda _arguments, result, _hyper: 2 * math.prod(result),  # multiply, magnitude, sum, divide
        equation=term("posterior"),
    ),
)
