"""Broken task files, each with words its one-line error must hold. `write_data` makes the files they name.

The model they are loaded for takes ``(n, 1, 4, 4)`` and gives ten classes.
"""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gos_adapt.model.model import TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

INPUTS = (TensorSpec("input", ("N", 1, 4, 4), "float32"),)
OUTPUTS = (TensorSpec("logits", ("N", 10), "float32"),)


class Hostile(NamedTuple):
    name: str
    toml: str
    expected: tuple[str, ...]


GOOD = """
[input]
layout = "NHWC"
scale = "1/255"

[splits.training]
files = ["good.npz"]
take = [0, 60]

[splits.selection]
files = ["good.npz"]
take = [60, 80]

[splits.test]
files = ["good.npz"]
take = [80, 100]

[metric]
name = "top-1"

[training]
loss = "cross-entropy"
"""


def _broken(name: str, old: str, instead: str, *expected: str) -> Hostile:
    """`GOOD` with one thing changed."""
    assert GOOD.count(old), f"{name}: {old!r} is not in GOOD"
    return Hostile(name, GOOD.replace(old, instead, 1), expected)


TRAINING = 'files = ["good.npz"]\ntake = [0, 60]'

HOSTILE_TASKS = (
    _broken(
        "misspelt_key", 'layout = "NHWC"', 'layuot = "NHWC"', "unknown key 'input.layuot'", 'did you mean "layout"?'
    ),
    _broken("misspelt_table", "[metric]", "[metrics]", "unknown key 'metrics'", 'did you mean "metric"?'),
    _broken("key_like_no_other", 'name = "top-1"', 'zzz = 1\nname = "top-1"', "'metric.zzz'", "known here: name"),
    _broken("not_toml", "[metric]", "[metric", "not valid TOML", "line"),
    _broken("deeply_nested", 'scale = "1/255"', "scale = " + "[" * 4_000, "not valid TOML"),
    _broken("dotted_depth", 'scale = "1/255"', "scale" + ".a" * 2_000 + " = 1", "input.scale", "an oversized dict"),
    _broken("endless_line", 'scale = "1/255"', "scale = 1" + "0" * 5_000, "lines of more than 4096 bytes"),
    _broken("endless_file", "[metric]", "#\n" * 40_000 + "[metric]", "larger than 65536 bytes: not a task file"),
    _broken("endless_integer", 'scale = "1/255"', "scale = 0x" + "f" * 4_000, "input.scale", "an oversized int"),
    _broken("wrong_type", 'layout = "NHWC"', "layout = 3", "input.layout must be one of NHWC, NCHW, as-is, got 3"),
    _broken("table_expected", GOOD, "input = 3\n", "input must be a table, got 3"),
    _broken("scale_is_nan", 'scale = "1/255"', "scale = nan", "input.scale must be a finite number", "nan"),
    _broken("scale_divides_by_0", 'scale = "1/255"', 'scale = "1/0"', "input.scale", "'1/0'"),
    _broken("std_is_0", 'scale = "1/255"', "std = 0", "std divides, so it must not be 0"),
    _broken("no_mean_at_all", 'scale = "1/255"', "mean = []", "input.mean", "got []"),
    _broken(
        "three_means_one_channel", 'scale = "1/255"', "mean = [1, 2, 3]", 'split "training"', "3 values of mean for 1"
    ),
    _broken("reshape_does_not_fit", 'scale = "1/255"', "reshape = [4, 4, 3]", 'split "training"', "do not fit [input]"),
    _broken("wrong_layout", '"NHWC"', '"as-is"', 'split "', "(4, 4, 1)", "takes (1, 4, 4)", "see layout"),
    _broken("unknown_metric", '"top-1"', '"accuracy"', "metric.name must be one of top-1, top-5", "'accuracy'"),
    _broken("metric_without_name", 'name = "top-1"', "", "metric.name is missing"),
    _broken("unknown_loss", '"cross-entropy"', '"hinge"', "training.loss must be one of cross-entropy", "'hinge'"),
    _broken("loss_against_metric", '"cross-entropy"', '"mse"', '"top-1" is about classes', '"mse" about values'),
    _broken("no_batch", "[training]", "[training]\nbatch = 0", "training.batch must be an integer from 1", "got 0"),
    _broken("batch_is_true", "[training]", "[training]\nbatch = true", "training.batch", "got True"),
    _broken("cold", "[training]", "[training]\ntemperature = -1.0", "training.temperature must be positive", "-1.0"),
    _broken("no_test_split", "[splits.test]", "[splits.calibration]", "splits.test is missing"),
    _broken("overlapping_ranges", "[60, 80]", "[50, 80]", '"training" and "selection" overlap in 10 samples', "take"),
    _broken("overlapping_files", TRAINING, 'files = ["copy.npz"]', '"training" and "test" overlap in 1 samples'),
    _broken("range_backwards", "[0, 60]", "[60, 0]", "splits.training.take", "start < stop"),
    _broken("empty_range", "[80, 100]", "[80, 80]", "splits.test.take", "start < stop"),
    _broken("range_too_far", "[80, 100]", "[80, 101]", "splits.test", "take ends at 101, but there are 100 samples"),
    _broken("negative_range", "[80, 100]", "[-20, 100]", "splits.test.take must be an integer from 0", "-20"),
    _broken("no_source", TRAINING, "", "splits.training needs either files or folder"),
    _broken("two_sources", TRAINING, 'files = ["good.npz"]\nfolder = "f"', "needs either files or folder"),
    _broken("missing_file", TRAINING, 'files = ["gone.npz"]', "splits.training", "gone.npz is not a file"),
    _broken("missing_folder", TRAINING, 'folder = "gone"', "splits.training", "gone is not a folder"),
    _broken("endless_device", TRAINING, 'files = ["/dev/zero"]', "/dev/zero is not a file"),
    _broken("endless_name", TRAINING, f'files = ["{"x" * 2000}"]', "splits.training", "cannot read"),
    _broken("control_character", TRAINING, 'files = ["a\\u0000b"]', "splits.training.files must be a text"),
    _broken("empty_file_list", TRAINING, "files = []", "splits.training.files must be a list of one or more"),
    _broken("missing_array", "[input]", '[input]\narray = "image"', 'has no array "image"', "'images', 'labels'"),
    _broken("empty_split", TRAINING, 'files = ["empty.npz"]', 'split "training" is empty'),
    _broken("nan_in_samples", TRAINING, 'files = ["nan.npz"]', 'split "training" inputs: 2 of 6 samples hold NaN'),
    _broken("lengths_differ", TRAINING, 'files = ["short.npz"]', '6 samples in "images" but 5 in "labels"'),
    _broken(
        "labels_too_high", TRAINING, 'files = ["high.npz"]', 'split "', "labels run from 1 to 10", "classes 0 to 9"
    ),
    _broken(
        "labels_below_0", "[splits.training]", "[target]\noffset = -1\n[splits.training]", "labels run from -1 to 8"
    ),
    _broken("labels_are_floats", TRAINING, 'files = ["float.npz"]', "targets must be integers", "float64"),
    _broken("labels_are_rows", TRAINING, 'files = ["onehot.npz"]', "a target has shape (10,), expected ()"),
    _broken("samples_of_other_size", TRAINING, 'files = ["large.npz"]', "(1, 8, 8)", "takes (1, 4, 4)", "resize"),
    _broken("files_disagree", TRAINING, 'files = ["good.npz", "large.npz"]', "files of a split must agree"),
    _broken("pickled_objects", TRAINING, 'files = ["objects.npz"]', "cannot read array", "never unpickled"),
    _broken("texts", TRAINING, 'files = ["texts.npz"]', "expected integers or floats"),
    _broken("single_value", TRAINING, 'files = ["scalar.npz"]', "a single value"),
    _broken("truncated_archive", TRAINING, 'files = ["truncated.npz"]', "cannot read array", "truncated.npz"),
    _broken("not_an_archive", TRAINING, 'files = ["text.npz"]', "cannot read array", "not a zip file"),
    _broken("flipped_bits", TRAINING, 'files = ["flipped.npz"]', "cannot read array", "flipped.npz"),
    _broken("huge_header", TRAINING, 'files = ["bomb.npz"]', "cannot read array", "bytes large, at most"),
    _broken("lying_header", TRAINING, 'files = ["liar.npz"]', "its header describes", "the file holds"),
    _broken("unfinished_header", TRAINING, 'files = ["unfinished.npz"]', "cannot read array", "unfinished.npz"),
    _broken("offsets_backwards", "[input]", '[input]\narray = "jpeg"\noffsets = "backwards"', "must grow from 0"),
    _broken("offsets_too_far", "[input]", '[input]\narray = "jpeg"\noffsets = "far"', "must grow from 0 to at most 8"),
    _broken("not_an_image", "[input]", '[input]\narray = "jpeg"\noffsets = "fine"', "cannot decode"),
    _broken("resize_of_floats", "[input]", "[input]\nresize = [2, 2]", "splits.training", "resize needs uint8 images"),
    _broken("resize_to_the_moon", "[input]", "[input]\nresize = [100000, 2]", "input.resize", "from 1 to 4096"),
    Hostile("extends_nothing", 'extends = "gone.toml"', ("gone.toml is not a file",)),
    Hostile("extends_elsewhere", 'extends = "../task.toml"', ("extends must name a file of the same folder",)),
    Hostile("extends_itself", 'extends = "extends_itself.toml"', ("one level is allowed",)),
    Hostile("nothing_at_all", "", ("metric.name is missing",)),
)


def write_data(folder: Path) -> None:
    """Write the sound and the broken data files that the task files above name."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(100, 4, 4, 1)).astype(np.float32)
    labels = np.arange(100) % 10
    encoded = {
        "jpeg": np.arange(8, dtype=np.uint8),
        "fine": np.minimum(np.arange(101), 8),
        "backwards": np.arange(101)[::-1],
        "far": np.arange(101),
    }
    six, holes = images[:6] + 1, images[:6].copy()
    holes[1, 0, 0], holes[4, 2, 1] = np.nan, np.inf
    np.savez(folder / "good.npz", images=images, labels=labels, **encoded)
    np.savez(folder / "copy.npz", images=np.concatenate([six, images[90:91]]), labels=labels[:7])
    np.savez(folder / "empty.npz", images=images[:0], labels=labels[:0])
    np.savez(folder / "nan.npz", images=holes, labels=labels[:6])
    np.savez(folder / "short.npz", images=six, labels=labels[:5])
    np.savez(folder / "high.npz", images=images[:11] + 1, labels=np.arange(11))
    np.savez(folder / "float.npz", images=images[:20] + 1, labels=labels[:20].astype(np.float64))
    np.savez(folder / "onehot.npz", images=images[:20] + 1, labels=np.eye(10, dtype=np.int64)[labels[:20]])
    np.savez(
        folder / "large.npz",
        images=np.ones((20, 8, 8, 1), np.float32) * np.arange(20).reshape(20, 1, 1, 1),
        labels=labels[:20],
    )
    np.savez(folder / "objects.npz", images=six.astype(object), labels=labels[:6])
    np.savez(folder / "texts.npz", images=six, labels=labels[:6].astype(str))
    np.savez(folder / "scalar.npz", images=np.float32(1), labels=np.int64(1))
    np.savez_compressed(folder / "sound.npz", images=six, labels=labels[:6])
    sound = (folder / "sound.npz").read_bytes()
    (folder / "truncated.npz").write_bytes(sound[: len(sound) // 2])
    flipped = bytearray(sound)
    flipped[80:160] = bytes(byte ^ 0xFF for byte in flipped[80:160])
    (folder / "flipped.npz").write_bytes(flipped)
    (folder / "text.npz").write_text("not an archive\n")
    _write_header_only(folder / "bomb.npz", (1 << 40,))
    _write_header_only(folder / "liar.npz", (1 << 10,))
    _write_header_only(folder / "unfinished.npz", (1 << 10,), b"}", b" ")


def _write_header_only(path: Path, shape: tuple[int, ...], old: bytes = b"", instead: bytes = b"") -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as archive:
        for key in ("images", "labels"):
            archive.writestr(f"{key}.npy", header.getvalue().replace(old, instead))
