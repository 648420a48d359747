"""How good a model's outputs are: one row of `METRICS` a metric.

A metric adds up a small *tally* over the batches and turns the sum into a value, so it streams by construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, Any]
TargetKind = Literal["classes", "values"]


ROUNDING = 1e-9
"""Of a difference of metrics: far less than one sample in a split of millions."""


@dataclass(frozen=True)
class Metric:
    """A score of outputs against targets.

    Attributes:
        name: The word in task files and reports.
        unit: What `value` counts.
        targets: Integer classes (outputs then hold one score a class along axis 1), or values.
        higher_is_better: Whether it is a fraction of 1 to keep high, or an error to keep low.
        tally: Outputs and targets of a batch to statistics that add up over batches.
        value: The summed statistics to the metric.
    """

    name: str
    unit: Literal["fraction of samples", "overlap", "units of the target"]
    targets: TargetKind
    higher_is_better: bool
    tally: Callable[[Array, Array], Array]
    value: Callable[[Array], float]

    def score(self, outputs: Array, targets: Array) -> float:
        """Score one batch that holds everything."""
        return self.value(self.tally(outputs, targets))

    def drop(self, original: float, adapted: float) -> float:
        """What an adaptation lost, to be compared with epsilon; negative when it gained.

        For a fraction of 1 it is the difference (0.01 is one point). An error has the target's units, so its drop is
        the relative growth (0.01 is 1 % more), or the plain difference when the original made no error at all.
        """
        if self.higher_is_better:
            return original - adapted
        return (adapted - original) / (original or 1.0)


def is_acceptable(drop: float, epsilon: float) -> bool:
    """Whether a drop is at most epsilon; 100 and 99 % differ by a little more than 0.01 in floating point."""
    return drop <= epsilon + ROUNDING


def _hits(k: int, outputs: Array, targets: Array) -> Array:
    """[samples whose class is among the k highest scores, samples]; equal scores rank by class, NaN is a miss."""
    own = np.take_along_axis(outputs, targets[:, None], axis=1)
    before = np.arange(outputs.shape[1]) < targets[:, None]
    rank = np.count_nonzero((outputs > own) | ((outputs == own) & before), axis=1)
    hit = (rank < k) & ~np.isnan(outputs).any(axis=1)
    return np.array([np.count_nonzero(hit), len(targets)], dtype=np.int64)


def _absolute_error(outputs: Array, targets: Array) -> Array:
    """[sum of absolute errors, values]."""
    error = np.abs(outputs.reshape(targets.shape).astype(np.float64) - targets)
    return np.array([error.sum(), error.size])


def _confusion(outputs: Array, targets: Array) -> Array:
    """(classes, classes): how often target i was predicted as j; a NaN counts as a wrong prediction."""
    classes = outputs.shape[1]
    predicted = np.where(np.isnan(outputs).any(axis=1), (targets + 1) % classes, outputs.argmax(axis=1))
    return np.bincount((targets * classes + predicted).ravel(), minlength=classes**2).reshape(classes, classes)


def _ratio(tally: Array) -> float:
    return float(tally[0] / tally[1])


def _mean_iou(confusion: Array) -> float:
    """Mean over the classes that occur, background included: TP / (TP + FP + FN)."""
    both = np.diag(confusion)
    either = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    return float((both[either > 0] / either[either > 0]).mean())


def _dice(confusion: Array) -> float:
    """Mean over the classes that occur, background included: 2 TP / (2 TP + FP + FN)."""
    total = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float((2 * np.diag(confusion)[total > 0] / total[total > 0]).mean())


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top-1", "fraction of samples", "classes", True, partial(_hits, 1), _ratio),
        Metric("top-5", "fraction of samples", "classes", True, partial(_hits, 5), _ratio),
        Metric("mean-iou", "overlap", "classes", True, _confusion, _mean_iou),
        Metric("dice", "overlap", "classes", True, _confusion, _dice),
        Metric("mean-absolute-error", "units of the target", "values", False, _absolute_error, _ratio),
    )
}
