from __future__ import annotations

import io
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hostile_tasks import GOOD, HOSTILE_TASKS, INPUTS, OUTPUTS, Hostile, write_data
from PIL import Image

from gos_adapt.errors import ConfigError
from gos_adapt.model.model import TensorSpec
from gos_adapt.task import Task, load_task
from gos_adapt.task.format import read_tables

REPOSITORY = Path(__file__).resolve().parents[3]
EXAMPLES = REPOSITORY / "examples" / "tasks"
DATA = REPOSITORY.parent / "shared" / "data"


def load(folder: Path, toml: str, name: str = "task") -> Task:
    (folder / f"{name}.toml").write_text(toml)
    return load_task(folder / f"{name}.toml", INPUTS, OUTPUTS)


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_data(folder)
    return folder


@pytest.mark.parametrize("hostile", HOSTILE_TASKS, ids=lambda hostile: hostile.name)
def test_a_broken_task_file_ends_in_one_line_that_says_what(data_folder: Path, hostile: Hostile) -> None:
    with pytest.raises(ConfigError) as caught:
        load(data_folder, hostile.toml, hostile.name)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(data_folder / f"{hostile.name}.toml"))
    for words in hostile.expected:
        assert words in message


def test_hostile_names_are_unique() -> None:
    assert len({hostile.name for hostile in HOSTILE_TASKS}) == len(HOSTILE_TASKS)


def test_a_damaged_data_file_is_read_whole_or_refused(data_folder: Path, tmp_path: Path) -> None:
    sound = (data_folder / "sound.npz").read_bytes()
    rng = np.random.default_rng(0)
    toml = GOOD.replace('files = ["good.npz"]\ntake = [0, 60]', 'files = ["damaged.npz"]')
    write_data(tmp_path)
    refused = 0
    for _ in range(300):
        damaged = bytearray(sound)
        for place in rng.integers(len(sound), size=3):
            damaged[place] = rng.integers(256)
        (tmp_path / "damaged.npz").write_bytes(damaged)
        try:
            load(tmp_path, toml)
        except ConfigError:
            refused += 1
    assert refused > 200


def test_splits_and_settings_arrive(data_folder: Path) -> None:
    task = load(data_folder, GOOD.replace("[training]", "[training]\nbatch = 32\ntemperature = 2"))
    assert [(split.name, split.n) for split in task.splits] == [
        ("training", 54),
        ("selection", 20),
        ("test", 20),
        ("calibration", 6),
    ]
    assert (task.name, task.metric.name, task.loss.name, task.batch, task.temperature) == (
        "task",
        "top-1",
        "cross-entropy",
        32,
        2.0,
    )


def test_take_with_a_step_takes_every_other(data_folder: Path) -> None:
    interleaved = GOOD.replace("[0, 60]", "[0, 100, 2]").replace("[60, 80]", "[1, 100, 4]")
    task = load(data_folder, interleaved.replace("[80, 100]", "[3, 100, 4]"))
    stored = np.load(data_folder / "good.npz")["labels"]
    assert task.test.targets.tolist() == stored[3::4].tolist()


def test_dropped_duplicates_stay_in_the_split_that_must_be_whole(data_folder: Path) -> None:
    toml = GOOD.replace('files = ["good.npz"]\ntake = [0, 60]', 'files = ["copy.npz"]')
    task = load(data_folder, toml.replace("[splits.training]", '[splits]\nduplicates = "drop"\n\n[splits.training]'))
    assert (task.calibration.n, task.training.n, task.test.n) == (1, 5, 20)


def test_an_extending_file_replaces_whole_tables(data_folder: Path) -> None:
    (data_folder / "base.toml").write_text(GOOD)
    task = load(data_folder, 'extends = "base.toml"\n[input]\nlayout = "NHWC"\nmean = 2')
    assert task.test.preprocessing.scale == (1.0,)
    assert task.test.preprocessing.mean == (2.0,)
    assert task.test.n == 20


def test_only_what_changes_the_result_changes_the_key(data_folder: Path) -> None:
    key = load(data_folder, GOOD).key
    assert load(data_folder, f"# a comment\n{GOOD}", "renamed").key == key
    assert load(data_folder, GOOD.replace("1/255", "1/256")).key != key
    assert load(data_folder, GOOD.replace("[80, 100]", "[81, 100]")).key != key


def image_folder(folder: Path, per_class: int, first_grey: int) -> None:
    """Class ``a`` dark, ``b`` light; every image of one grey of its own, 6x8 pixels."""
    for label, name in enumerate("ab"):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            grey = first_grey + 128 * label + i
            Image.new("RGB", (8, 6), (grey, grey, grey)).save(folder / name / f"{i}.png")


IMAGES = """
[input]
layout = "NHWC"
color = "L"
resize = [4, 4]
[splits.training]
folder = "training"
[splits.selection]
folder = "selection"
[splits.test]
folder = "test"
take = [0, 6]
[metric]
name = "top-1"
[training]
loss = "cross-entropy"
"""


def test_a_folder_of_images_gives_labels_by_sub_folder(tmp_path: Path) -> None:
    for name, first in (("training", 0), ("selection", 20), ("test", 40)):
        image_folder(tmp_path / name, 10, first)
    task = load(tmp_path, IMAGES)
    inputs, targets = task.test.arrays()
    assert inputs.shape == (6, 1, 4, 4)
    assert set(targets) == {0, 1}
    assert ((inputs[:, 0, 0, 0] >= 128) == (targets == 1)).all()


def test_folders_with_different_classes_are_refused(tmp_path: Path) -> None:
    for name, first in (("training", 0), ("selection", 20), ("test", 40)):
        image_folder(tmp_path / name, 10, first)
    (tmp_path / "test" / "b").rename(tmp_path / "test" / "c")
    with pytest.raises(ConfigError, match=r'splits\.test\.folder and splits\.training\.folder .* "b" is in only one'):
        load(tmp_path, IMAGES)


def test_images_of_different_size_need_resize(tmp_path: Path) -> None:
    for name, first in (("training", 0), ("selection", 20), ("test", 40)):
        image_folder(tmp_path / name, 10, first)
    Image.new("RGB", (9, 9)).save(tmp_path / "training" / "a" / "odd.png")
    with pytest.raises(ConfigError, match=r"images differ in size.*resize"):
        load(tmp_path, IMAGES.replace("resize = [4, 4]", ""))


@pytest.mark.parametrize("side", [5_000, 20_000])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    for name, first in (("training", 0), ("selection", 20), ("test", 40)):
        image_folder(tmp_path / name, 10, first)
    (tmp_path / "training" / "a" / "bomb.ppm").write_bytes(f"P5 {side} {side} 255\n".encode())
    with pytest.raises(ConfigError, match=r"bomb\.ppm.*pixels"):
        load(tmp_path, IMAGES)


def test_concatenated_image_files_are_decoded(tmp_path: Path) -> None:
    blobs = []
    for grey in range(40):
        stream = io.BytesIO()
        Image.new("L", (4, 4), 5 * grey).save(stream, "PNG")
        blobs.append(stream.getvalue())
    offsets = np.cumsum([0, *map(len, blobs)])
    joined = np.frombuffer(b"".join(blobs), dtype=np.uint8)
    np.savez(tmp_path / "good.npz", files=joined, ends=offsets, labels=np.arange(40) % 10)
    toml = GOOD.replace("[input]", '[input]\narray = "files"\noffsets = "ends"\ncolor = "L"').replace(
        "[0, 60]", "[0, 20]"
    )
    task = load(tmp_path, toml.replace("[60, 80]", "[20, 30]").replace("[80, 100]", "[30, 40]"))
    assert task.test.inputs[:, 0, 0, 0].tolist() == [5 * grey for grey in range(30, 40)]


def test_the_documented_example_is_a_valid_task_file(data_folder: Path, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "task-file.md").read_text()
    example = page.split("```toml\n")[1].split("```")[0]
    assert {"input", "target", "splits", "metric", "training"} <= tomllib.loads(example).keys()
    rng = np.random.default_rng(0)
    for name, n in (("train", 300), ("test", 50)):
        images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(n) % 10)
    (tmp_path / "task.toml").write_text(example)
    inputs = (TensorSpec("input", ("N", 3, 32, 32), "float32"),)
    assert load_task(tmp_path / "task.toml", inputs, OUTPUTS).test.n == 50


SHAPES = {
    "resnet20_cifar10": ((3, 32, 32), 10),
    "resnet56_cifar10": ((3, 32, 32), 10),
    "resnet8_cifar10": ((3, 32, 32), 10),
    "mobilenet_v2_imagenet": ((3, 224, 224), 1001),
    "mobilenet_v1_imagenet": ((3, 128, 128), 1001),
    "dscnn_kws12": ((1, 49, 10), 12),
}


def test_every_example_has_a_case() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.toml")} == set(SHAPES)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data beside the repository")
@pytest.mark.parametrize("name", SHAPES)
def test_an_example_is_well_formed_and_names_files_that_exist(name: str) -> None:
    splits = read_tables(EXAMPLES / f"{name}.toml")["splits"]
    for split in ("training", "selection", "calibration", "test"):
        assert all((EXAMPLES / file).is_file() for file in splits[split]["files"])


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data beside the repository")
@pytest.mark.parametrize("name", ["mobilenet_v1_imagenet", "dscnn_kws12"])
def test_an_example_loads_against_its_model(name: str) -> None:
    shape, classes = SHAPES[name]
    inputs = (TensorSpec("input", ("N", *shape), "float32"),)
    task = load_task(EXAMPLES / f"{name}.toml", inputs, (TensorSpec("output", ("N", classes), "float32"),))
    assert task.selection.sample_shape == shape
    assert task.test.n == 250
    assert task.test.opened == []
