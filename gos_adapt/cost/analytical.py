"""Cost by formula: a roofline with a fixed price per kernel, scaled to agree with one measurement.

    latency = scale · Σ over kernels of (overhead + max(macs / macs_per_s, bytes / bytes_per_s))

A kernel is a window, reduction or matrix instruction with the element-wise instructions that a compiler fuses into it.
What it says is held against the original by the same formula: which candidates are not measured at all, and which are
fitted and measured first.

Reference: Williams, Waterman, Patterson 2009, "Roofline". Benmeziane et al., "A comprehensive survey on hardware-aware
neural architecture search", 2021, section 5, ranks analytical models last: no result rests on it, everything that is
chosen was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gos_adapt.instructions import INSTRUCTIONS
from gos_adapt.instructions.base import Kind
from gos_adapt.operators.graph import LEAVES
from gos_adapt.quantities import Prediction

if TYPE_CHECKING:
    from gos_adapt.operators.graph import OperatorGraph

KERNEL_INSTRUCTIONS = frozenset(
    {
        *("cross_correlation", "matrix_product", "matrix_vector_product", "dot_product", "vector_norm"),
        *("max_pool", "average_pool", "global_average_pool", "frobenius_norm", "softmax", "concat", "unfold"),
        *("attention", "linear_attention"),
        *("sum_along", "mean_along", "maximum_along", "minimum_along", "bayes_rule", "gradient"),
    }
)
"""What starts a kernel of its own; everything else is fused into the kernel before it."""


@dataclass(frozen=True)
class Roofline:
    """A device as two slopes and an offset.

    Attributes:
        macs_per_s: float32 multiply-accumulates a second, at best.
        bytes_per_s: Bytes a second between the cores and where a layer's activations live.
        kernel_overhead_s: Fixed cost of one kernel: call, parallel region, cold start.
        scale: Measured over raw predicted latency of a reference operator (see `calibrated`).
    """

    macs_per_s: float = 2e10
    bytes_per_s: float = 2e10
    kernel_overhead_s: float = 5e-6
    scale: float = 1.0

    def predict(self, operator: OperatorGraph) -> Prediction:
        """Predict the latency of `operator` at batch 1."""
        return Prediction(self.scale * self._raw_s(operator), "roofline")

    def calibrated(self, operator: OperatorGraph, measured_s: float) -> Roofline:
        """Return this roofline, scaled so that it gives `measured_s` for `operator`."""
        return replace(self, scale=measured_s / self._raw_s(operator))

    def _raw_s(self, operator: OperatorGraph) -> float:
        kernels, compute_s = 0, 0.0
        for node, result in zip(operator.nodes, operator.types, strict=True):
            if node.op not in KERNEL_INSTRUCTIONS:
                continue
            arguments = tuple(operator.types[a].shape for a in node.args)
            macs = INSTRUCTIONS[node.op].macs(arguments, result.shape, dict(node.hyper))
            traffic_bytes = 4 * sum(map(math.prod, (*arguments, result.shape)))
            compute_s += max(macs / self.macs_per_s, traffic_bytes / self.bytes_per_s)
            kernels += 1
        if not kernels:  # element-wise only: one kernel that streams, or nothing left but the input itself
            compute_s = self._element_wise_s(operator)
        return max(kernels, 1) * self.kernel_overhead_s + compute_s

    def _element_wise_s(self, operator: OperatorGraph) -> float:
        features = sum(
            node.op not in LEAVES and value.kind is Kind.FEATURE
            for node, value in zip(operator.nodes, operator.types, strict=True)
        )
        return 8 * features * math.prod(operator.output_shape) / self.bytes_per_s
