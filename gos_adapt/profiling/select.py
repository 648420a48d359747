"""Which operator to replace next.

1. A model that does not fit the device's memory: the operator with the most parameters.
2. A model that fits: the operator with the highest latency; among *close* latencies the one with the most parameters.
   Close to the highest means within `CLOSE` of it or within the noise of the two measurements, whichever is wider.
3. All sites like the chosen one that are among the worst (close to it by the same measure) go with it.
4. A site that was selected once, or that shares nodes with a replaced one, is never selected again.

A residual branch and the layers inside it are different options for the same latency: each competes for itself with the
latency of all its kernels, so the branch, which leaves the search more freedom, comes first, and its layers have their
turn if nothing replaced the branch. A group never holds two sites that share nodes.

Reference: thesis, algorithm 4. It leaves "close" and "similar" open; both are defined above.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gos_adapt.cost.measured import noise_s

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from gos_adapt.quantities import Measurement

CLOSE = 0.05


@dataclass(frozen=True)
class SiteCost:
    """What selection knows about a site.

    Attributes:
        name: `Site.name`.
        likeness: Equal for sites that compute the same operator.
        latency: Of all the site's kernels together, at batch 1.
        parameters: Stored numbers.
        overlaps: Names of the sites that share nodes with this one.
    """

    name: str
    likeness: str
    latency: Measurement
    parameters: int
    overlaps: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Memory:
    """What the model needs and what the device has."""

    model_bytes: int
    device_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the model can be deployed."""
        return self.model_bytes <= self.device_bytes


@dataclass(frozen=True)
class Selection:
    """The sites to replace next.

    Attributes:
        group: Names of alike sites, the worst first; empty when nothing is left to replace.
        reasons: For every site why it was or was not chosen.
        bound: The whole model's speed-up if the group's latency became zero.
    """

    group: tuple[str, ...]
    reasons: dict[str, str]
    bound: float


def select(
    sites: Sequence[SiteCost],
    memory: Memory,
    *,
    whole_s: float,
    selected: Collection[str] = (),
    replaced: Collection[str] = (),
    limit: int | None = None,
) -> Selection:
    """Choose the least efficient operator and the sites like it.

    Args:
        sites: Every site of the model as it is now, in model order.
        memory: Checked anew at every iteration, because a replacement changes it.
        whole_s: Measured latency of the whole model.
        selected: Names that were selected before, whatever came of it.
        replaced: Names of those that were replaced.
        limit: Most sites to return; all alike without it.
    """
    reasons = {site.name: _exclusion(site, memory, selected, replaced) for site in sites}
    ranked = [site for site in sites if not reasons[site.name]]
    if not ranked:
        return Selection((), reasons, 1.0)
    worst = _worst(ranked, memory)
    group: list[SiteCost] = []
    for site in sorted(ranked, key=lambda site: (site is not worst, -_criterion(site, memory))):
        refusal = _refusal(site, worst, memory, group, limit)
        reasons[site.name] = refusal or _grounds(site, worst, memory)
        if not refusal:
            group.append(site)
    bound = amdahl_bound(whole_s, sum(site.latency.median_s for site in group if site.latency.ok))
    return Selection(tuple(site.name for site in group), reasons, bound)


def amdahl_bound(total_s: float, replaced_s: float) -> float:
    """Speed-up of the whole if the part `replaced_s` of `total_s` took no time; infinite if that is all of it."""
    return total_s / (total_s - replaced_s) if replaced_s < total_s else math.inf


def _exclusion(site: SiteCost, memory: Memory, selected: Collection[str], replaced: Collection[str]) -> str:
    """Why a site does not take part; empty if it does."""
    if site.name in selected:
        return "not selected: was selected before"
    if shared := sorted(site.overlaps.intersection(replaced)):
        return f"not selected: shares nodes with {shared[0]}, which was replaced"
    if memory.fits and not site.latency.ok:
        return f"not selected: its latency is unknown ({site.latency.error})"
    return ""


def _criterion(site: SiteCost, memory: Memory) -> float:
    return site.latency.median_s if memory.fits else site.parameters


def _worst(sites: Sequence[SiteCost], memory: Memory) -> SiteCost:
    first = max(sites, key=lambda site: _criterion(site, memory))
    if not memory.fits:
        return first
    return max((site for site in sites if _close(site, first)), key=lambda site: site.parameters)


def _close(site: SiteCost, worst: SiteCost) -> bool:
    tolerance_s = max(CLOSE * worst.latency.median_s, noise_s(site.latency) + noise_s(worst.latency))
    return abs(worst.latency.median_s - site.latency.median_s) <= tolerance_s


def _refusal(site: SiteCost, worst: SiteCost, memory: Memory, group: Sequence[SiteCost], limit: int | None) -> str:
    """Why a site does not join the group of the worst one; empty if it does."""
    if site.likeness != worst.likeness:
        measure = f"{site.latency.median_s:.3g} s" if memory.fits else f"{site.parameters} parameters"
        return f"not selected: {measure}, and unlike {worst.name}"
    if memory.fits and not _close(site, worst):
        return f"not selected: like {worst.name}, but its {site.latency.median_s:.3g} s are not close to it"
    if shared := [member.name for member in group if member.name in site.overlaps]:
        return f"not selected: shares nodes with {shared[0]}, which is in the group"
    if limit is not None and len(group) >= limit:
        return f"not selected: like {worst.name}, but the group is limited to {limit}"
    return ""


def _grounds(site: SiteCost, worst: SiteCost, memory: Memory) -> str:
    if site is not worst:
        return f"selected: like {worst.name}"
    if not memory.fits:
        return (
            f"selected: most parameters ({site.parameters}); "
            f"the model's {memory.model_bytes} bytes exceed the device's {memory.device_bytes}"
        )
    return f"selected: highest latency ({site.latency.median_s:.3g} s; close ones ranked by parameters)"
