"""What is done to training images."""

import numpy as np
import pytest

from gos_adapt.errors import ConfigError
from gos_adapt.task.augmentation import NONE, Augmentation
from gos_adapt.task.split import Preprocessing, Split


def images(n=64, side=6):
    return np.arange(1, 1 + n * side * side * 3, dtype=np.int32).reshape(n, side, side, 3)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_every_image_is_the_stored_one_moved_and_mirrored(layout):
    stored = images()
    given = stored if layout == "NHWC" else stored.transpose(0, 3, 1, 2)
    changed = Augmentation(flip=True, shift=2)(given, layout, np.random.default_rng(0))
    changed = changed if layout == "NHWC" else changed.transpose(0, 2, 3, 1)
    seen = set()
    for before, after in zip(stored, changed, strict=True):
        padded = np.pad(before, ((2, 2), (2, 2), (0, 0)))
        windows = {
            (top, left, flipped): padded[top : top + 6, left : left + 6][:, :: -1 if flipped else 1]
            for top in range(5)
            for left in range(5)
            for flipped in (False, True)
        }
        (match,) = [key for key, window in windows.items() if np.array_equal(window, after)]
        seen.add(match)
    assert len(seen) > 20
    assert {flipped for *_, flipped in seen} == {False, True}


def test_without_any_change_samples_of_any_shape_pass_through():
    signal = np.zeros((4, 10), np.float32)
    assert not NONE
    assert NONE(signal, "as-is", np.random.default_rng(0)) is signal


@pytest.mark.parametrize(
    ("layout", "shift", "said"),
    [("as-is", 1, "augmentation is for images"), ("NHWC", 6, "must be less than the images' 6x6, got 6")],
)
def test_what_does_not_fit_the_split_is_refused(layout, shift, said):
    split = Split("training", images(), np.zeros(64, np.int64), Preprocessing(layout))
    with pytest.raises(ConfigError, match=said):
        Augmentation(shift=shift).check(split)


def test_a_negative_shift_is_refused():
    with pytest.raises(ConfigError, match="at least 0"):
        Augmentation(shift=-1)


def test_a_split_hands_out_changed_samples_with_their_targets():
    split = Split("training", images(), np.arange(64), Preprocessing("NHWC"))
    which = np.array([3, 60])
    inputs, targets = split.augmented(which, Augmentation(flip=True), np.random.default_rng(1))
    assert targets.tolist() == [3, 60]
    assert inputs.shape == (2, 3, 6, 6)
    assert inputs.sum(axis=(1, 2, 3)).tolist() == split.inputs[which].sum(axis=(1, 2, 3)).tolist()
