"""Where a model's latency goes: every kernel timed inside the running model, and the whole beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gos_adapt.quantities import Measurement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gos_adapt.model.model import Site

IN_PLACE = "sum of kernels timed in place"


@dataclass(frozen=True)
class KernelLatency:
    """One kernel call of the compiled model.

    Attributes:
        name: Of the kernel; calls of the same code share it, and its measurement.
        tensors: ONNX tensors it computes.
        rule: The schedule rule that took it; ``"none: ..."`` marks a kernel that no rule took.
        latency: Of one call.
    """

    name: str
    tensors: tuple[str, ...]
    rule: str
    latency: Measurement


@dataclass(frozen=True)
class Profile:
    """A compiled model on one device.

    Attributes:
        whole: The model, end to end.
        kernels: Its kernel calls, in the order they run.
        sites: Site name -> latency of all kernels that compute any part of the site. Sites overlap, and a kernel that
            fuses a site with its neighbour counts in full for both.
    """

    whole: Measurement
    kernels: tuple[KernelLatency, ...]
    sites: dict[str, Measurement]

    @cached_property
    def kernel_sum(self) -> Measurement:
        """All kernels together."""
        return together([kernel.latency for kernel in self.kernels], self.whole)

    @property
    def gap(self) -> float | None:
        """(sum of kernels - whole) / whole by medians; `None` when something was not measured."""
        if not (self.whole.ok and self.kernel_sum.ok):
            return None
        return self.kernel_sum.median_s / self.whole.median_s - 1

    def group_s(self, sites: Sequence[Site]) -> float:
        """Seconds of all kernels that compute any part of these sites, each counted once."""
        covered = {name for site in sites for name in (*site.nodes, site.output)}
        mine = (kernel.latency for kernel in self.kernels if not covered.isdisjoint(kernel.tensors))
        return sum(latency.median_s for latency in mine if latency.ok)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "whole": self.whole.to_json(),
            "kernels": [
                {
                    "name": kernel.name,
                    "tensors": list(kernel.tensors),
                    "rule": kernel.rule,
                    "latency": kernel.latency.to_json(),
                }
                for kernel in self.kernels
            ],
            "sites": {name: latency.to_json() for name, latency in self.sites.items()},
        }

    @classmethod
    def from_json(cls, form: dict[str, Any]) -> Profile:
        """Inverse of `to_json`."""
        return cls(
            Measurement.from_json(form["whole"]),
            tuple(
                KernelLatency(k["name"], tuple(k["tensors"]), k["rule"], Measurement.from_json(k["latency"]))
                for k in form["kernels"]
            ),
            {name: Measurement.from_json(latency) for name, latency in form["sites"].items()},
        )


def attribute(whole: Measurement, kernels: Sequence[KernelLatency], sites: Sequence[Site]) -> Profile:
    """Give each site the kernels that compute its tensors."""
    profile = Profile(whole, tuple(kernels), {})
    by_site = {site.name: together([k.latency for k in kernels_of(site, profile)], whole) for site in sites}
    return replace(profile, sites=by_site)


def kernels_of(site: Site, profile: Profile) -> list[KernelLatency]:
    """Return the kernels that compute any part of a site."""
    covered = {*site.nodes, site.output}
    return [kernel for kernel in profile.kernels if not covered.isdisjoint(kernel.tensors)]


def together(latencies: Sequence[Measurement], like: Measurement) -> Measurement:
    """Return the latency of several kernels one after the other: sample by sample the sum.

    Args:
        latencies: Taken interleaved, so that the same position means about the same moment.
        like: Gives the conditions.
    """
    conditions = replace(like.conditions, method=IN_PLACE)
    failed = next((latency.error for latency in latencies if not latency.ok), None)
    if failed is not None or not latencies:
        return Measurement((), conditions, failed or "no kernel of its own: it was folded away")
    return Measurement(tuple(map(sum, zip(*(latency.samples_s for latency in latencies), strict=False))), conditions)
