"""The task: four disjoint splits, a metric and a loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from gos_adapt.errors import ConfigError
from gos_adapt.task.augmentation import NONE, Augmentation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gos_adapt.model.model import TensorSpec
    from gos_adapt.task.losses import Loss
    from gos_adapt.task.metrics import Metric
    from gos_adapt.task.split import Split

DEFAULT_CALIBRATION = 512
MAX_BATCH = 65_536


@dataclass(frozen=True, eq=False)
class Task:
    """What the model is for. `load_task` reads one from a file; from Python, give splits made of arrays.

    Attributes:
        name: For reports.
        metric: What must be kept.
        loss: What training minimises.
        training: Fits and trains replacements.
        selection: Decides between candidates.
        test: Read once, by verification; never decides anything. `test.opened` says when it was read.
        calibration: Quantisation ranges; see `set_aside_calibration` when there is none.
        batch: Samples a training step.
        temperature: Of the distillation loss.
        augmentation: Of training samples.

    Raises:
        ConfigError: if two splits share a sample, the targets do not suit metric and loss, or a number is out of range.
    """

    name: str
    metric: Metric
    loss: Loss
    training: Split
    selection: Split
    test: Split
    calibration: Split
    batch: int = 128
    temperature: float = 40.0
    augmentation: Augmentation = NONE

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= MAX_BATCH:
            raise ConfigError(f"batch must be 1 to {MAX_BATCH}, got {self.batch}")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature must be positive and finite, got {self.temperature}")
        if self.augmentation:
            self.augmentation.check(self.training)
        if self.metric.targets != self.loss.targets:
            raise ConfigError(
                f'metric "{self.metric.name}" is about {self.metric.targets}, loss "{self.loss.name}" about '
                f"{self.loss.targets}; choose two that agree"
            )
        for split in self.splits:
            if split.has_classes != (self.metric.targets == "classes"):
                wanted = "integers" if self.metric.targets == "classes" else "floats"
                raise ConfigError(
                    f'{split} targets must be {wanted} for "{self.metric.name}", got {split.targets.dtype}'
                )
        for one, other in combinations(self.splits, 2):
            _check_disjoint(one, other)

    @property
    def splits(self) -> tuple[Split, ...]:
        """All four."""
        return (self.training, self.selection, self.test, self.calibration)

    @property
    def full_batches(self) -> int:
        """In one pass over the training split, at least one; what is left over waits for another pass."""
        return max(1, self.training.n // self.batch)

    @cached_property
    def key(self) -> str:
        """Content hash: two tasks of equal key lead to the same run."""
        digest = sha256(
            repr((self.metric.name, self.loss.name, self.batch, self.temperature, self.augmentation)).encode()
        )
        for split in self.splits:
            digest.update(repr((split.name, split.n, split.preprocessing, split.targets.dtype.str)).encode())
            digest.update(b"".join(split.digests))
            digest.update(split.targets.tobytes())
        return digest.hexdigest()[:16]

    def check(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        """Check every split against the model; the metric is about the model's first output.

        Raises:
            ConfigError: if a sample or a target does not fit.
        """
        if len(inputs) != 1 or inputs[0].dtype != "float32":
            got = ", ".join(f"{spec.name} ({spec.dtype})" for spec in inputs)
            raise ConfigError(f"a task describes models of one float32 input, this one has {got}")
        for split in self.splits:
            if split.sample_shape != inputs[0].shape[1:]:
                stored = split.inputs.shape[1:]
                raise ConfigError(
                    f"{split}: a preprocessed sample has shape {split.sample_shape} (stored: {stored}), "
                    f'the model\'s input "{inputs[0].name}" takes {inputs[0].shape[1:]}; see layout, reshape, resize'
                )
            if outputs:
                self._check_targets(split, outputs[0])

    def _check_targets(self, split: Split, output: TensorSpec) -> None:
        target_shape = split.targets.shape[1:]
        described = f'the model\'s output "{output.name}" has shape {output.shape}'
        if self.metric.targets == "values":
            if _size(target_shape) != _size(output.at_batch(1)[1:]):
                raise ConfigError(f"{split}: a target has shape {target_shape}, {described}")
            return
        if len(output.shape) < 2 or output.at_batch(1)[1] < 2:
            raise ConfigError(f'"{self.metric.name}" needs scores of 2 or more classes along axis 1, {described}')
        expected = () if self.metric.unit == "fraction of samples" else output.shape[2:]
        if target_shape != expected or len(output.shape) != 2 + len(expected):
            raise ConfigError(f"{split}: a target has shape {target_shape}, expected {expected}: {described}")
        classes, low, high = output.at_batch(1)[1], int(split.targets.min()), int(split.targets.max())
        if low < 0 or high >= classes:
            raise ConfigError(
                f"{split}: labels run from {low} to {high}, the model has classes 0 to {classes - 1}; see target.offset"
            )


def set_aside_calibration(training: Split) -> tuple[Split, Split]:
    """Split training into (calibration, the rest): its first 512 samples, but at most a tenth and at least one."""
    n = max(1, min(DEFAULT_CALIBRATION, training.n // 10))
    return replace(training.part(slice(0, n)), name="calibration"), training.part(slice(n, None))


def without_duplicates(splits: Sequence[Split]) -> tuple[Split, ...]:
    """Drop from each split the samples that an earlier one holds: give the split that must stay whole first."""
    seen: set[bytes] = set()
    kept = []
    for split in splits:
        kept.append(split.part(np.array([digest not in seen for digest in split.digests])))
        seen.update(split.digests)
    return tuple(kept)


def _check_disjoint(one: Split, other: Split) -> None:
    index = {digest: i for i, digest in enumerate(one.digests)}
    shared = [(index[digest], j) for j, digest in enumerate(other.digests) if digest in index]
    if shared:
        i, j = shared[0]
        raise ConfigError(
            f'splits "{one.name}" and "{other.name}" overlap in {len(shared)} samples (the first: {i} and {j}); '
            f'give them different files or ranges (take), or set splits.duplicates = "drop"'
        )


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
