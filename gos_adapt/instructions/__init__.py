"""The instruction table: one small file per family, joined here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gos_adapt.instructions import (
    activation,
    aggregation,
    attention,
    calculus,
    convolution,
    decompositions,
    feature_products,
    linear_algebra,
    matrix_functions,
    norms,
    pooling,
    probability,
    scaling,
    schedule_hints,
    structure,
    unfold,
    weight_algebra,
)

if TYPE_CHECKING:
    from gos_adapt.instructions.base import Instruction

ROWS: tuple[Instruction, ...] = (
    *convolution.ROWS,
    *linear_algebra.ROWS,
    *feature_products.ROWS,
    *attention.ROWS,
    *scaling.ROWS,
    *norms.ROWS,
    *weight_algebra.ROWS,
    *matrix_functions.ROWS,
    *decompositions.ROWS,
    *activation.ROWS,
    *pooling.ROWS,
    *aggregation.ROWS,
    *probability.ROWS,
    *calculus.ROWS,
    *structure.ROWS,
    *unfold.ROWS,
    *schedule_hints.ROWS,
)

INSTRUCTIONS: dict[str, Instruction] = {row.name: row for row in ROWS}
assert len(INSTRUCTIONS) == len(ROWS), "two instructions share a name"
