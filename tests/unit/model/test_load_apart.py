from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hostile_models import hostile_models, single_node, small_model
from onnx import helper

from gos_adapt.errors import ModelImportError, UnsupportedOperatorError
from gos_adapt.model.load import load_model

if TYPE_CHECKING:
    from pathlib import Path


def test_model_read_apart_is_the_model_read_here(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(small_model().SerializeToString())
    assert load_model(path) == load_model(path, apart=False)


def test_refusal_comes_back_with_its_class_and_text(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(hostile_models()["LSTM"].content)
    with pytest.raises(UnsupportedOperatorError, match=r"^m\.onnx: operators that cannot be compiled: LSTM"):
        load_model(path)


def test_model_that_crashes_native_code_is_refused(tmp_path: Path) -> None:
    # A negative size out of Pad makes ONNX's inference of Slice abort the process.
    pad = helper.make_node("Pad", ["x", "pads"], ["p"])
    model = single_node(pad, {"x": [1, 6]}, pads=np.array([0, 0, 0, -100], np.int64), start=np.array([0, 0], np.int64))
    graph = small_model()
    graph.ParseFromString(model)
    graph.graph.node.append(helper.make_node("Slice", ["p", "start", "start"], ["y"]))
    graph.graph.output[0].name = "y"
    path = tmp_path / "m.onnx"
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(ModelImportError, match="ended in SIGABRT"):
        load_model(path)
