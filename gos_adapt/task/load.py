"""Read a task from its TOML file: the tables, then the data they name, then the checks of both."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gos_adapt.errors import ConfigError
from gos_adapt.task.augmentation import Augmentation
from gos_adapt.task.files import (
    MAX_ARRAY_BYTES,
    Encoded,
    decode_images,
    list_images,
    read_array,
    read_encoded,
    resize_images,
)
from gos_adapt.task.format import PREPROCESSING_KEYS, REQUIRED_SPLITS, read_tables
from gos_adapt.task.losses import LOSSES
from gos_adapt.task.metrics import METRICS
from gos_adapt.task.split import Preprocessing, Split
from gos_adapt.task.task import Task, set_aside_calibration, without_duplicates

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gos_adapt.model.model import TensorSpec

Array = np.ndarray[Any, Any]

# Who keeps a sample that several splits hold, when duplicates are dropped.
_PRECEDENCE = ("test", "selection", "training", "calibration")


def load_task(path: Path, model_inputs: Sequence[TensorSpec], model_outputs: Sequence[TensorSpec] = ()) -> Task:
    """Read a task file and all its data, and check them against each other and the model.

    Args:
        path: The TOML file; the paths in it are relative to it.
        model_inputs: Of the model; a task describes models of one float32 input.
        model_outputs: Of the model; labels and targets are checked against the first when given.

    Raises:
        ConfigError: one line naming the file, the key or split, what was expected and what was found.
    """
    try:
        task = _task(path, read_tables(path))
        task.check(model_inputs, model_outputs)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return task


def _task(path: Path, tables: dict[str, Any]) -> Task:
    splits = _read_splits(path.parent, tables)
    if "calibration" not in splits:
        splits["calibration"], splits["training"] = set_aside_calibration(splits["training"])
    if tables["splits"].get("duplicates") == "drop":
        kept = without_duplicates([splits[name] for name in _PRECEDENCE])
        splits = {split.name: split for split in kept}
    training, augmentation = tables["training"], tables.get("augmentation", {})
    return Task(
        name=tables.get("name", path.stem),
        metric=METRICS[tables["metric"]["name"]],
        loss=LOSSES[training["loss"]],
        training=splits["training"],
        selection=splits["selection"],
        test=splits["test"],
        calibration=splits["calibration"],
        augmentation=Augmentation(flip="flip" in augmentation, shift=augmentation.get("shift", 0)),
        **{key: training[key] for key in ("batch", "temperature") if key in training},
    )


def _read_splits(folder: Path, tables: dict[str, Any]) -> dict[str, Split]:
    samples, target = tables.get("input", {}), tables.get("target", {})
    preprocessing = Preprocessing(**{key: samples[key] for key in PREPROCESSING_KEYS if key in samples})
    read = cache(read_array)  # several splits may be ranges of one file
    splits: dict[str, Split] = {}
    classes: dict[str, tuple[str, ...]] = {}
    for name in (*REQUIRED_SPLITS, "calibration"):
        if name not in tables["splits"]:
            continue
        source = tables["splits"][name]
        inputs: Array | list[Encoded]
        try:
            if "folder" in source:
                inputs, targets, classes[name] = list_images(folder / source["folder"])
            else:
                inputs, targets = _read_files([folder / file for file in source["files"]], samples, target, read)
            chosen = _chosen(source.get("take"), len(targets))
            inputs, targets = _decoded(inputs[chosen], samples), _offset(targets[chosen], target)
        except ConfigError as error:
            raise ConfigError(f"splits.{name}: {error}") from error
        splits[name] = Split(name, inputs, targets, preprocessing)
    _check_same_classes(classes)
    return splits


def _read_files(
    files: list[Path], samples: dict[str, Any], target: dict[str, Any], read: Callable[[Path, str], Array]
) -> tuple[Array | list[Encoded], Array]:
    """Inputs (arrays, or images still encoded) and targets of all files, joined."""
    input_key, target_key = samples.get("array", "images"), target.get("array", "labels")
    inputs: list[Any] = []
    targets: list[Array] = []
    for file in files:
        targets.append(read(file, target_key))
        inputs.append(
            read_encoded(file, input_key, samples["offsets"], read) if "offsets" in samples else read(file, input_key)
        )
        if len(inputs[-1]) != len(targets[-1]):
            raise ConfigError(
                f'{file} has {len(inputs[-1])} samples in "{input_key}" but {len(targets[-1])} in "{target_key}"'
            )
    if "offsets" in samples:
        return [image for images in inputs for image in images], _joined(targets, files)
    return _joined(inputs, files), _joined(targets, files)


def _joined(arrays: list[Array], files: list[Path]) -> Array:
    for array, file in zip(arrays, files, strict=True):
        if array.shape[1:] != arrays[0].shape[1:] or array.dtype != arrays[0].dtype:
            raise ConfigError(
                f"{file} holds {array.dtype} samples of {array.shape[1:]}, {files[0]} {arrays[0].dtype} of "
                f"{arrays[0].shape[1:]}; files of a split must agree"
            )
    if sum(array.nbytes for array in arrays) > MAX_ARRAY_BYTES:
        raise ConfigError(f"the files hold more than {MAX_ARRAY_BYTES} bytes; give fewer files")
    return np.concatenate(arrays)


def _chosen(take: tuple[int, ...] | None, n: int) -> slice:
    if take is None:
        return slice(0, n)
    if take[1] > n:
        raise ConfigError(f"take ends at {take[1]}, but there are {n} samples")
    return slice(*take)


def _decoded(inputs: Array | list[Encoded], samples: dict[str, Any]) -> Array:
    resize = samples.get("resize")
    if isinstance(inputs, list):
        return decode_images(inputs, samples.get("color", "RGB"), resize)
    return inputs.copy() if resize is None else resize_images(inputs, resize)


def _offset(targets: Array, target: dict[str, Any]) -> Array:
    if "offset" not in target:
        return targets.copy()
    if targets.dtype.kind == "f":
        raise ConfigError(f"target.offset is for integer labels, these are {targets.dtype}")
    labels: Array = targets.astype(np.int64) + target["offset"]
    return labels


def _check_same_classes(classes: dict[str, tuple[str, ...]]) -> None:
    """Labels are positions among the sub-folders, so splits must have the same ones."""
    for name, found in classes.items():
        first = next(iter(classes))
        if difference := sorted(set(found) ^ set(classes[first])):
            raise ConfigError(
                f'splits.{name}.folder and splits.{first}.folder differ in classes: "{difference[0]}" is in only one'
            )
