"""Cost by measurement: when two measured latencies are different, and when the difference is noise."""

from __future__ import annotations

from statistics import quantiles
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gos_adapt.quantities import Measurement


def noise_s(measurement: Measurement) -> float:
    """Half the interquartile range of the samples: how far a repetition would probably lie off the median."""
    if len(measurement.samples_s) < 2:
        return 0.0
    low, _, high = quantiles(measurement.samples_s, n=4, method="inclusive")
    return (high - low) / 2


def change_s(adapted: Measurement, original: Measurement) -> float:
    """Median minus median: negative when `adapted` is faster."""
    return adapted.median_s - original.median_s


def clearly_faster(adapted: Measurement, original: Measurement) -> bool:
    """Whether the medians differ by more than the noise of both together."""
    return change_s(adapted, original) < -(noise_s(adapted) + noise_s(original))
