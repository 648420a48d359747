"""A split: samples as they lie in the files, and how they become the model's input."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gos_adapt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gos_adapt.task.augmentation import Augmentation

Array = np.ndarray[Any, Any]
Layout = Literal["NHWC", "NCHW", "as-is"]
ModelLayout = Literal["NCHW", "NHWC"]


@dataclass(frozen=True)
class Preprocessing:
    """From stored samples to the model's input: reshape, ``(x * scale - mean) / std`` in float32, then layout.

    Attributes:
        layout: Axes of the (reshaped) samples; ``"as-is"`` gives them to the model as they are.
        model_layout: Axes of the model's input; means nothing when `layout` is ``"as-is"``.
        reshape: Shape of one sample, without batch.
        scale: One number, or one a channel (the last axis when `layout` is ``"as-is"``).
        mean: Likewise, in units of the scaled samples.
        std: Likewise.
    """

    layout: Layout = "as-is"
    model_layout: ModelLayout = "NCHW"
    reshape: tuple[int, ...] | None = None
    scale: tuple[float, ...] = (1.0,)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for name in ("scale", "mean", "std"):
            constants = getattr(self, name)
            if not constants or not all(math.isfinite(constant) for constant in constants):
                raise ConfigError(f"{name} must be one or more finite numbers, got {constants}")
        if 0 in self.std:
            raise ConfigError(f"std divides, so it must not be 0, got {self.std}")

    def __call__(self, stored: Array) -> Array:
        """Preprocess samples ``(n, ...)`` into a fresh, contiguous float32 array.

        Raises:
            ValueError: if the samples have other axes or channels than described.
        """
        x = self.shaped(stored).astype(np.float32)
        if self.layout != "as-is" and x.ndim != 4:
            raise ValueError(f"layout {self.layout} needs samples of 3 axes, not {x.ndim - 1}")
        x *= self._per_channel("scale", x.shape)
        x -= self._per_channel("mean", x.shape)
        x /= self._per_channel("std", x.shape)
        return np.ascontiguousarray(x.transpose(self._permutation())) if self.layout != "as-is" else x

    def shaped(self, stored: Array) -> Array:
        """Give samples the axes that `layout` names."""
        return stored if self.reshape is None else stored.reshape(len(stored), *self.reshape)

    def _per_channel(self, name: str, shape: tuple[int, ...]) -> Array:
        constants = np.array(getattr(self, name), dtype=np.float32)
        axis = 1 if self.layout == "NCHW" else len(shape) - 1
        if len(constants) not in (1, shape[axis]):
            raise ValueError(f"{len(constants)} values of {name} for {shape[axis]} channels")
        return constants.reshape(-1, 1, 1) if self.layout == "NCHW" else constants

    def _permutation(self) -> tuple[int, ...]:
        return tuple(self.layout.index(axis) for axis in self.model_layout)


@dataclass(frozen=True, eq=False)
class Split:
    """Samples with their targets; inputs stay as stored (often uint8) and are preprocessed batch by batch.

    Attributes:
        name: ``"calibration"``, ``"training"``, ``"selection"`` or ``"test"``.
        inputs: ``(n, ...)``, integers or floats.
        targets: ``(n, ...)``: integer classes, or float values.
        preprocessing: How inputs become the model's.
        opened: When samples were handed out (ISO 8601, UTC), for the run log: the test split's stays empty until
            verification. Checking a split does not count as opening it. Shared by its parts.

    Raises:
        ConfigError: if it is empty, lengths differ, a number is not finite in float32, or preprocessing does not fit.
    """

    name: str
    inputs: Array = field(repr=False)
    targets: Array = field(repr=False)
    preprocessing: Preprocessing = Preprocessing()
    opened: list[str] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        for what, array in (("inputs", self.inputs), ("targets", self.targets)):
            if array.dtype.kind not in "uif" or array.ndim == 0:
                raise ConfigError(f"{self} {what} must be an array of numbers, got {array.dtype} {array.shape}")
        if len(self.inputs) != len(self.targets):
            raise ConfigError(f"{self} has {len(self.inputs)} inputs but {len(self.targets)} targets")
        if not len(self.inputs) or not self.inputs.size:
            raise ConfigError(f"{self} is empty")
        for what, array in (("inputs", self.inputs), ("targets", self.targets)):
            if bad := _samples_not_finite(array):
                raise ConfigError(f"{self} {what}: {bad} of {len(array)} samples hold NaN or infinity")
        try:
            self.preprocessing(self.inputs[:1])
        except ValueError as error:
            raise ConfigError(f"{self} samples of shape {self.inputs.shape[1:]} do not fit [input]: {error}") from None

    def __str__(self) -> str:
        return f'split "{self.name}"'

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def n(self) -> int:
        """How many samples."""
        return len(self.inputs)

    @property
    def has_classes(self) -> bool:
        """Whether targets are classes (integers) rather than values."""
        return bool(self.targets.dtype.kind != "f")

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one preprocessed sample, without batch."""
        _, *shape = self.preprocessing(self.inputs[:1]).shape
        return tuple(shape)

    @cached_property
    def digests(self) -> tuple[bytes, ...]:
        """Content hash of each stored input."""
        return tuple(blake2b(sample.tobytes(), digest_size=16).digest() for sample in self.inputs)

    def part(self, which: slice | Array) -> Split:
        """Return the samples that a slice, an index array or a boolean mask selects."""
        return replace(self, inputs=self.inputs[which], targets=self.targets[which])

    def batches(self, size: int, *, rng: np.random.Generator | None = None) -> Iterator[tuple[Array, Array]]:
        """Yield preprocessed inputs (float32) with targets (int64 or float32); the last batch may be smaller.

        Args:
            size: Samples a batch.
            rng: Shuffles the samples; in stored order without it.
        """
        self._note_opened()
        order = None if rng is None else rng.permutation(self.n)
        for start in range(0, self.n, size):
            batch = slice(start, start + size)
            yield self._at(batch if order is None else order[batch])

    def arrays(self) -> tuple[Array, Array]:
        """Return all samples as one batch."""
        self._note_opened()
        return self._at(slice(None))

    def augmented(
        self, which: slice | Array, augmentation: Augmentation, rng: np.random.Generator
    ) -> tuple[Array, Array]:
        """Return the samples of a slice or an index array, each changed at random, with targets."""
        self._note_opened()
        images = augmentation(self.preprocessing.shaped(self.inputs[which]), self.preprocessing.layout, rng)
        return self.preprocessing(images), self.targets_of(which)

    def targets_of(self, which: slice | Array = slice(None)) -> Array:
        """Return targets alone (int64 or float32)."""
        return self.targets[which].astype(np.int64 if self.has_classes else np.float32)

    def _at(self, which: slice | Array) -> tuple[Array, Array]:
        return self.preprocessing(self.inputs[which]), self.targets_of(which)

    def _note_opened(self) -> None:
        self.opened.append(datetime.now(UTC).isoformat(timespec="seconds"))


def _samples_not_finite(array: Array) -> int:
    """How many samples are not finite once they are float32."""
    if array.dtype.kind != "f":
        return 0
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32))
    return int(np.count_nonzero(~finite.reshape(len(array), -1).all(axis=1)))
