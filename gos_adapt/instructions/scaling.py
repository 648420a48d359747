"""Multiplication by a number: a weight ``(1,)``, learned or what `matrix_functions` and `norms` say about a weight.

Reference: ours; without these rows the numbers in the thesis' table 4.3 (determinant, trace, rank, norms) would be
of no use.
"""

from __future__ import annotations

import numpy as np
import torch

from gos_adapt.errors import Rejection
from gos_adapt.instructions.base import Instruction, Kind, Shape
from gos_adapt.instructions.rules import half_mac, shape_rule


def _shape(x: Shape, factor: Shape) -> Shape | Rejection:
    return x if factor == (1,) else Rejection(f"the factor must be (1,), got {factor}")


ROWS = (
    Instruction(
        name="scale",
        arguments=(Kind.FEATURE, Kind.WEIGHT),
        infer=shape_rule(_shape, None, 1),
        numpy=lambda x, w: x * w,
        torch=lambda x, w: x * w.to(x.dtype),  # which may be bfloat16, and stays it
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("Mul", list(names)),
        weight_shapes=lambda _features, _hyper: ((1,),),
        initial=(1.0,),
        macs=half_mac,
        equation=lambda x, w: x * w,
    ),
    Instruction(
        name="weight_scale",
        arguments=(Kind.WEIGHT, Kind.WEIGHT),
        infer=shape_rule(_shape, None, 1),
        numpy=np.multiply,
        torch=torch.mul,
        initial=(1.0, 1.0),
        equation=lambda w, factor: w * factor,
    ),
)
