"""Energy: what one run of the adapted group takes, predicted from counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gos_adapt.search.candidate import Outcome

MAC_J = 4.6e-12
"""Of one multiplication (3.7 pJ) and one addition (0.9 pJ) of 32-bit floating-point numbers."""
BYTE_J = 12.5e-12
"""Of one byte from a cache of a megabyte (100 pJ for 64 bits)."""


def energy_j(outcome: Outcome) -> float:
    """Return predicted joules of all sites: counted multiply-accumulates and bytes, each at a published price.

    The prices are those of a 45 nm process: they rank candidates, they are no board's joules.

    Reference: Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, figure 1.1.9;
    thesis 4.3, where more objectives than two are an option.
    """
    operator = outcome.candidate.operator
    return outcome.sites * (MAC_J * operator.macs + BYTE_J * operator.traffic_bytes)
