"""Augmentation: what may be done to a training sample without changing its target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gos_adapt.errors import ConfigError

if TYPE_CHECKING:
    from gos_adapt.task.split import Layout, Split

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of images, drawn anew each time a sample is used for training.

    Attributes:
        flip: Mirror left and right, with probability one half.
        shift: Move by up to so many pixels along each axis; what enters is 0 in the stored samples' terms.

    Raises:
        ConfigError: the shift is negative.
    """

    flip: bool = False
    shift: int = 0

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ConfigError(f"an augmentation's shift must be at least 0 pixels, got {self.shift}")

    def __bool__(self) -> bool:
        """Whether it changes anything."""
        return self.flip or self.shift > 0

    def check(self, split: Split) -> None:
        """Raise unless the split holds images that are larger than the shift.

        Raises:
            ConfigError: it does not.
        """
        if (layout := split.preprocessing.layout) == "as-is":
            raise ConfigError('augmentation is for images: say their axes, layout = "NHWC" or "NCHW"')
        shape = split.preprocessing.shaped(split.inputs[:1]).shape
        height, width = shape[layout.index("H")], shape[layout.index("W")]
        if self.shift >= min(height, width):
            raise ConfigError(f"augmentation.shift must be less than the images' {height}x{width}, got {self.shift}")

    def __call__(self, images: Array, layout: Layout, rng: np.random.Generator) -> Array:
        """Return changed copies of `images`: ``(n, h, w, c)`` or ``(n, c, h, w)``, as `layout` says.

        Without any change asked for, samples of any shape are returned as they are.
        """
        if not self:
            return images
        first = layout.index("H")
        height, width = images.shape[first : first + 2]
        margin = [(self.shift, self.shift) if axis in (first, first + 1) else (0, 0) for axis in range(4)]
        padded = np.pad(images, margin)
        changed = np.empty_like(images)
        offsets = rng.integers(0, 2 * self.shift + 1, (len(images), 2))
        flips = rng.random(len(images)) < (0.5 if self.flip else 0.0)
        before = (slice(None),) * (first - 1)
        for image, source, (top, left), flipped in zip(changed, padded, offsets, flips, strict=True):
            window = source[(*before, slice(top, top + height), slice(left, left + width))]
            image[...] = np.flip(window, axis=first) if flipped else window
        return changed


NONE = Augmentation()
"""Samples are used as they are."""
