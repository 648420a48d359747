"""Cost by counting: exact, free, the same on every machine, and blind to how well the code runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gos_adapt.quantities import Count

if TYPE_CHECKING:
    from gos_adapt.operators.graph import OperatorGraph


@dataclass(frozen=True)
class CountedCost:
    """What an operator does to one sample, and what it stores."""

    macs: Count
    parameters: Count
    traffic: Count

    def no_better_than(self, other: CountedCost) -> bool:
        """Whether no count is lower: such an operator cannot be the faster or the smaller one."""
        return all(
            mine.value >= theirs.value
            for mine, theirs in (
                (self.macs, other.macs),
                (self.parameters, other.parameters),
                (self.traffic, other.traffic),
            )
        )


def counted_cost(operator: OperatorGraph) -> CountedCost:
    """Count multiply-accumulates, parameters, and bytes moved if every instruction went through memory."""
    return CountedCost(
        Count(operator.macs, "mac"),
        Count(operator.parameters, "parameter"),
        Count(operator.traffic_bytes, "byte"),
    )
