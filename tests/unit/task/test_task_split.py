from __future__ import annotations

import numpy as np
import pytest

from gos_adapt.errors import ConfigError
from gos_adapt.task import LOSSES, METRICS, Preprocessing, Split, Task, set_aside_calibration


def split(name: str, first: int, n: int) -> Split:
    """Samples ``[[first], [first + 1], ...]``, classes alternating."""
    return Split(name, np.arange(first, first + n, dtype=np.float32)[:, None], np.arange(n) % 2)


def task(**changes: Split) -> Task:
    splits = {
        "training": split("training", 0, 10),
        "selection": split("selection", 10, 5),
        "test": split("test", 20, 5),
        "calibration": split("calibration", 30, 5),
    } | changes
    return Task("numbers", METRICS["top-1"], LOSSES["cross-entropy"], **splits)


def test_each_channel_is_scaled_then_centred_then_divided() -> None:
    pixel = np.array([[[[10, 20, 30]]]], dtype=np.uint8)
    x = Preprocessing("NHWC", scale=(0.1,), mean=(1, 0, 1), std=(2, 4, 0.5))(pixel)
    assert x.dtype == np.float32
    assert x.shape == (1, 3, 1, 1)
    np.testing.assert_allclose(x.ravel(), [0.0, 0.5, 4.0], atol=1e-6)


def test_layouts_move_pixels_where_the_model_expects_them() -> None:
    stored = np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4)
    np.testing.assert_array_equal(Preprocessing("NHWC")(stored), stored.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(Preprocessing("NCHW", "NHWC")(stored), stored.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(Preprocessing("NHWC", "NHWC")(stored), stored)
    np.testing.assert_array_equal(Preprocessing()(stored), stored)


def test_channel_constants_follow_the_stored_layout() -> None:
    stored = np.ones((1, 2, 5, 7), dtype=np.float32)
    by_channel = Preprocessing("NCHW", scale=(2, 3))(stored)
    assert by_channel[0, :, 4, 6].tolist() == [2, 3]
    features = Preprocessing(mean=(1, 2, 3))(np.full((2, 3), 3, dtype=np.int8))
    assert features.tolist() == [[2, 1, 0], [2, 1, 0]]


def test_keyword_features_are_dequantised_to_their_real_values() -> None:
    q = np.array([[[83, 84], [-128, 127]]], dtype=np.int8)
    x = Preprocessing(reshape=(1, 2, 2), scale=(0.5847029,), mean=(83 * 0.5847029,))(q)
    assert x.shape == (1, 1, 2, 2)
    np.testing.assert_allclose(x.ravel(), [0, 0.5847029, -211 * 0.5847029, 44 * 0.5847029], rtol=1e-5, atol=1e-5)


def test_preprocessing_leaves_the_stored_samples_alone() -> None:
    stored = np.ones((1, 2), dtype=np.float32)
    Preprocessing(scale=(5,))(stored)
    assert stored.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("preprocessing", "words"),
    [
        (Preprocessing("NHWC"), "layout NHWC needs samples of 3 axes, not 1"),
        (Preprocessing(mean=(1, 2)), "2 values of mean for 1 channels"),
        (Preprocessing(reshape=(3,)), "cannot reshape"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused(preprocessing: Preprocessing, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Split("training", np.ones((4, 1)), np.zeros(4, dtype=int), preprocessing)


def test_values_that_overflow_float32_count_as_infinite() -> None:
    with pytest.raises(ConfigError, match="1 of 2 samples hold NaN or infinity"):
        Split("training", np.array([[1.0], [1e300]]), np.zeros(2, dtype=int))


def test_batches_cover_every_sample_once_in_order() -> None:
    numbers = split("training", 0, 7)
    batches = list(numbers.batches(3))
    assert [len(x) for x, _ in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), numbers.arrays()[0])
    assert {(x.dtype.name, y.dtype.name) for x, y in batches} == {("float32", "int64")}


def test_shuffled_batches_keep_inputs_with_their_targets() -> None:
    numbers = split("training", 0, 50)
    first, again = (list(numbers.batches(8, rng=np.random.default_rng(1))) for _ in range(2))
    x, y = (np.concatenate(parts) for parts in zip(*first, strict=True))
    assert x.ravel().tolist() != list(range(50))
    assert sorted(x.ravel()) == list(range(50))
    assert (x.ravel() % 2 == y).all()
    np.testing.assert_array_equal(x, np.concatenate([inputs for inputs, _ in again]))


def test_a_split_records_when_it_was_opened_and_its_parts_with_it() -> None:
    whole = split("test", 0, 4)
    assert whole.opened == []
    whole.part(slice(0, 2)).arrays()
    list(whole.batches(2))
    assert len(whole.opened) == 2
    assert whole.opened[0].endswith("+00:00")


def test_checking_a_task_does_not_open_its_test_split() -> None:
    assert len(task().key) == 16
    assert task().test.opened == []


@pytest.mark.parametrize("name", ["training", "selection", "calibration"])
def test_no_split_may_share_a_sample_with_test(name: str) -> None:
    with pytest.raises(ConfigError, match=rf'"{name}".* overlap in 3 samples \(the first: [02] and [02]\)'):
        task(**{name: split(name, 18, 5), "test": split("test", 20, 5)})


def test_calibration_and_training_may_not_overlap_either() -> None:
    with pytest.raises(ConfigError, match='"training" and "calibration" overlap in 10'):
        task(calibration=split("calibration", 0, 10))


def test_calibration_set_aside_is_at_most_a_tenth() -> None:
    for n, aside in ((10_000, 512), (100, 10), (3, 1)):
        calibration, training = set_aside_calibration(split("training", 0, n))
        assert (calibration.name, calibration.n, training.n) == ("calibration", aside, n - aside)


def test_metric_loss_and_targets_must_agree() -> None:
    with pytest.raises(ConfigError, match='"mean-absolute-error" is about values, loss "cross-entropy" about classes'):
        Task("x", METRICS["mean-absolute-error"], LOSSES["cross-entropy"], *task().splits)
    with pytest.raises(ConfigError, match='targets must be floats for "mean-absolute-error", got int64'):
        Task("x", METRICS["mean-absolute-error"], LOSSES["l1"], *task().splits)


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([None]), np.array([1j]), np.float32(1)])
def test_only_arrays_of_numbers_make_a_split(array: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="must be an array of numbers"):
        Split("training", np.asarray(array), np.zeros(1, dtype=int))
