"""Memory: what the adapted group needs, weights and feature maps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gos_adapt.instructions.base import Kind
from gos_adapt.operators.hints import without_hints

if TYPE_CHECKING:
    from gos_adapt.operators.graph import OperatorGraph
    from gos_adapt.search.candidate import Outcome

FLOAT_BYTES = 4


def memory_bytes(outcome: Outcome) -> float:
    """Return counted bytes: the weights of all sites, and the feature maps that live at once in one of them.

    Reference: thesis 4.3, where more objectives than two are an option.
    """
    operator = outcome.candidate.operator
    return float(outcome.sites * FLOAT_BYTES * operator.parameters + peak_bytes(operator))


def peak_bytes(operator: OperatorGraph) -> int:
    """Bytes of the feature maps that live at once, at most, when nodes run in their order and nothing is fused.

    Schedule hints need none.
    """
    operator, _ = without_hints(operator)
    last_use = {a: i for i, node in enumerate(operator.nodes) for a in node.args}
    sizes = [FLOAT_BYTES * math.prod(v.shape) if v.kind is Kind.FEATURE else 0 for v in operator.types]
    live = peak = 0
    for i, node in enumerate(operator.nodes):
        live += sizes[i]
        peak = max(peak, live)
        live -= sum(sizes[a] for a in set(node.args) if last_use[a] == i)
    return peak
