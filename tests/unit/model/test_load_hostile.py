from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hostile_models import Hostile, hostile_models, small_model

from gos_adapt.errors import AdaptError, ModelImportError
from gos_adapt.model.load import load_model as load_model_apart

if TYPE_CHECKING:
    from pathlib import Path

MODELS = hostile_models()

# In this process, for speed; what another process adds is tested in `test_load_apart.py`.
load_model = partial(load_model_apart, apart=False)


@pytest.mark.parametrize("name", MODELS)
def test_hostile_model_ends_in_one_telling_line(name: str, tmp_path: Path) -> None:
    hostile: Hostile = MODELS[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(hostile.content)
    with pytest.raises(ModelImportError, match=hostile.says) as caught:
        load_model(path)
    assert type(caught.value) is hostile.error
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1000


def test_the_sound_model_the_corpus_is_made_of_loads(tmp_path: Path) -> None:
    path = tmp_path / "sound.onnx"
    path.write_bytes(small_model().SerializeToString())
    assert load_model(path).name == "sound"


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "weights.pth").write_bytes(b"1234")
    for name, says in {"folder.onnx": "not a file", "weights.pth": "neither", "nothing.onnx": "cannot read"}.items():
        with pytest.raises(ModelImportError, match=says):
            load_model(tmp_path / name)


def test_file_over_the_size_limit_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as stream:
        stream.truncate(3 * 2**30)  # sparse: takes no space
    with pytest.raises(ModelImportError, match="3221225472 bytes"):
        load_model(path)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_bytes_load_or_end_in_one_line(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    sound = small_model().SerializeToString()
    path = tmp_path / "model.onnx"
    for _ in range(60):
        content = bytearray(sound)
        if rng.random() < 0.2:
            del content[rng.randrange(len(content)) :]
        else:
            for _ in range(rng.choice([1, 1, 2, 4])):
                content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(bytes(content))
        try:
            load_model(path)
        except AdaptError as error:
            assert str(error).isprintable()  # noqa: PT017 (loading is allowed too)
