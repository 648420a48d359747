"""Cost by measurement: when two measured latencies are different, and when the difference is noise."""

from __future__ import annotations

from statistics import median, quantiles
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gos_adapt.quantities import Measurement


def noise_s(measurement: Measurement) -> float:
    """Half the interquartile range of the samples: how far a repetition would probably lie off the median."""
    if len(measurement.samples_s) < 2:
        return 0.0
    low, _, high = quantiles(measurement.samples_s, n=4, method="inclusive")
    return (high - low) / 2


def ratio_in_turns(adapted: Measurement, original: Measurement, turn: int) -> float:
    """Latency over latency, by the median over turns of the medians within each.

    A neighbour's load lasts longer than a turn: it slows both, and cancels. A median of all samples jumps where about
    half of them were slow.

    Args:
        adapted: Measured in turns with `original`.
        original: With as many samples.
        turn: Samples that each took before it was the other's turn.
    """

    def medians(measurement: Measurement) -> list[float]:
        samples = measurement.samples_s
        return [median(samples[start : start + turn]) for start in range(0, len(samples), turn)]

    return median(own / other for own, other in zip(medians(adapted), medians(original), strict=True))


def change_s(adapted: Measurement, original: Measurement) -> float:
    """Median minus median: negative when `adapted` is faster."""
    return adapted.median_s - original.median_s


def clearly_faster(adapted: Measurement, original: Measurement) -> bool:
    """Whether `adapted` took less time in three quarters of the pairs of samples, which were taken in turns.

    By chance that happens to one of 200 operators that are as fast as the original, of which 30 samples each were taken
    (sign test). Spreads of the samples would not do: a neighbour's load comes and goes, slows both, and hides a quarter
    less.

    Args:
        adapted: Measured in turns with `original`.
        original: With as many samples.
    """
    ratios = [own / other for own, other in zip(adapted.samples_s, original.samples_s, strict=True)]
    return (quantiles(ratios, n=4, method="inclusive")[2] if len(ratios) > 1 else ratios[0]) < 1
