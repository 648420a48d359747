"""What the search minimises: one file an objective, joined here; every one takes a measured `Outcome`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gos_adapt.search.objectives.energy import energy_j
from gos_adapt.search.objectives.latency import latency_change_s
from gos_adapt.search.objectives.loss import loss
from gos_adapt.search.objectives.memory import memory_bytes
from gos_adapt.search.objectives.parameters import parameters

if TYPE_CHECKING:
    from gos_adapt.search.candidate import Objective

OBJECTIVES: dict[str, Objective] = {
    "latency change (s)": latency_change_s,
    "parameters": parameters,
    "loss": loss,
    "memory (bytes)": memory_bytes,
    "energy (J)": energy_j,
}
