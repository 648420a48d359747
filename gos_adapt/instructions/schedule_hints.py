"""Schedule hints: identities that say how the kernel which computes their argument is to be scheduled.

A hint names a knob of the compiler's register-tiled loop nest (`tvm_passes.schedules.tiled_reduction`) and its value.
The kernel is scheduled so where the knob can take that value; elsewhere the hint is ignored, and the kernel's rule says
so. Only convolutions and matrix products keep hints: the canonical form drops all others.

In ONNX a hint is a remark in the documentation of the node, which changes nothing for anybody else.

Reference: thesis, table 4.3 (loop tiling and unrolling, "special aggregations").
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gos_adapt.instructions.base import Instruction, Kind
from gos_adapt.instructions.notation import term
from gos_adapt.instructions.rules import integer, shape_rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gos_adapt.instructions.base import HyperValue

MAX_VALUE = 64


def _hint(name: str, knob: str, values: tuple[int, ...]) -> Instruction:
    return Instruction(
        name=name,
        arguments=(Kind.FEATURE,),
        infer=shape_rule(lambda x, **_: x, None, **{knob: integer(1, MAX_VALUE)}),
        numpy=lambda x, **_: x,
        torch=lambda x, **_: x,
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("Identity", list(names)),
        hyperparameters={knob: values},
        equation=term(name, lambda **hyper: str(hyper[knob])),
    )


ROWS = (
    # outputs that are in registers at a time, along the width or else along the axis before the one that is vectorised
    _hint("tile", "columns", (1, 2, 4, 7, 8)),
    # steps of the innermost loop over what is summed that are written out one after the other
    _hint("unroll", "steps", (2, 4, 8)),
)
HINTS = frozenset(row.name for row in ROWS)
KNOBS = tuple(knob for row in ROWS for knob in row.hyperparameters)

_REMARK = re.compile(rf"adapt\.({'|'.join(KNOBS)})=(\d{{1,2}})\b")


def to_remark(hints: Mapping[str, HyperValue]) -> str:
    """Write hints (knob -> value) for the documentation of an ONNX node."""
    return " ".join(f"adapt.{knob}={value}" for knob, value in sorted(hints.items()))


def from_remark(text: str) -> dict[str, int]:
    """Read what `to_remark` wrote from any text; what else stands there is not for us."""
    return {knob: int(value) for knob, value in _REMARK.findall(text)}
