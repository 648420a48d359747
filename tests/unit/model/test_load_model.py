from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hostile_models import single_node, small_model
from onnx import external_data_helper, helper

from gos_adapt.errors import ModelImportError
from gos_adapt.model.load import load_model as load_model_apart
from gos_adapt.model.model import TensorSpec

DATA = Path(__file__).parents[4] / "shared" / "data"
REAL = sorted(
    path for folder in ("cifar10_resnet", "mlperf_tiny", "imagenet_models") for path in DATA.glob(f"{folder}/*.onnx")
)

# In this process, for speed; what another process adds is tested in `test_load_apart.py`.
load_model = partial(load_model_apart, apart=False)


def run(proto: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def save(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.skipif(not REAL, reason="no folder shared/data beside the repository")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_model_computes_the_same_in_canonical_form(path: Path) -> None:
    model = load_model(path)
    onnx.checker.check_model(model.proto, full_check=True)
    assert not {"BatchNormalization", "Identity", "Constant"} & {node.op_type for node in model.proto.graph.node}
    (spec,) = model.inputs
    x = np.random.default_rng(1).standard_normal(spec.at_batch(3)).astype(np.float32)
    expected = run(onnx.load(path), **{spec.name: x})
    np.testing.assert_allclose(
        run(model.proto, **{spec.name: x}), expected, rtol=0, atol=1e-4 * float(np.abs(expected).max())
    )


@pytest.mark.skipif(not REAL, reason="no folder shared/data beside the repository")
def test_every_tensor_of_a_real_model_has_a_shape_and_its_original_name() -> None:
    path = DATA / "cifar10_resnet" / "resnet20_cifar10.onnx"
    model = load_model(path)
    graph = model.proto.graph
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
    produced = {name for node in graph.node for name in node.output}
    assert shapes.keys() == produced - {"logits"}
    assert all(shape[0] == "N" and all(isinstance(size, int) for size in shape[1:]) for shape in shapes.values())
    assert produced <= {name for node in model.original.graph.node for name in node.output}
    assert {"Slice", "Pad", "ReduceMean"} < {node.op_type for node in graph.node}  # option-A shortcuts survive


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21])
def test_any_opset_from_9_on_loads(opset: int, tmp_path: Path) -> None:
    model = load_model(save(small_model(opset=opset), tmp_path / "m.onnx"))
    assert model.proto.opset_import[0].version == max(opset, 17)
    assert model.original.opset_import[0].version == opset
    assert model.inputs == (TensorSpec("x", ("N", 1, 4, 4), "float32"),)
    assert model.outputs == (TensorSpec("y", ("N", 3), "float32"),)


def test_initialisers_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    proto = small_model(opset=9)
    proto.ir_version = 3
    proto.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in proto.graph.initializer
    )
    model = load_model(save(proto, tmp_path / "old.onnx"))
    assert [spec.name for spec in model.inputs] == ["x"]
    assert [value.name for value in model.proto.graph.input] == ["x"]
    assert len(model.original.graph.input) > 1


def test_fixed_batch_stays_fixed(tmp_path: Path) -> None:
    model = load_model(save(small_model(batch=2), tmp_path / "fixed.onnx"))
    assert model.inputs[0].shape == (2, 1, 4, 4)
    assert model.outputs[0].shape == (2, 3)


def test_model_that_works_for_one_batch_size_only_says_so(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "size"], ["y"])
    path = tmp_path / "m.onnx"
    path.write_bytes(single_node(node, {"x": ["N", 6]}, size=np.array([1, 6], np.int64)))
    with pytest.raises(ModelImportError, match="with the batch axis fixed"):
        load_model(path)


def test_integer_input_is_allowed(tmp_path: Path) -> None:
    table = onnx.numpy_helper.from_array(np.arange(20, dtype=np.float32).reshape(10, 2), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        "embedding",
        [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["N", 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [table],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = load_model(save(proto, tmp_path / "embedding.onnx"))
    assert model.inputs == (TensorSpec("ids", ("N", 3), "int64"),)
    assert model.outputs == (TensorSpec("y", ("N", 3, 2), "float32"),)


def with_external_weights(folder: Path, location: str = "weights.bin") -> onnx.ModelProto:
    proto = small_model()
    weight = proto.graph.initializer[0]
    (folder / "weights.bin").write_bytes(b"12345678" + weight.raw_data)
    external_data_helper.set_external_data(weight, location, offset=8, length=len(weight.raw_data))
    weight.ClearField("raw_data")
    return proto


def test_weights_beside_the_model_are_read_into_it(tmp_path: Path) -> None:
    model = load_model(save(with_external_weights(tmp_path), tmp_path / "m.onnx"))
    x = np.ones((2, 1, 4, 4), np.float32)
    np.testing.assert_allclose(run(model.proto, x=x), run(small_model(), x=x), rtol=1e-4)
    assert model.original.SerializeToString() == small_model().SerializeToString()


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("/etc/hostname", "inside the model's folder"),
        ("../weights.bin", "inside the model's folder"),
        ("sub/../../weights.bin", "inside the model's folder"),
        ("link.bin", "through a link"),
        ("linked/weights.bin", "through a link"),
        ("none.bin", "no such file"),
        ("", "no such file"),
        ("short.bin", "ends after 0 of 72 bytes"),
        ("weights.bin\0", "inside the model's folder"),
    ],
)
def test_weights_outside_the_folder_are_refused(location: str, says: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(1000))
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "short.bin").write_bytes(b"1234")
    proto = with_external_weights(folder, location)
    with pytest.raises(ModelImportError, match=says):
        load_model(save(proto, folder / "m.onnx"))


@pytest.mark.parametrize(("key", "value"), [("offset", "-1"), ("length", "71"), ("offset", "9" * 30), ("length", "x")])
def test_wrong_extent_of_external_weights_is_refused(key: str, value: str, tmp_path: Path) -> None:
    proto = with_external_weights(tmp_path)
    next(entry for entry in proto.graph.initializer[0].external_data if entry.key == key).value = value
    with pytest.raises(ModelImportError, match="tensor w lies in"):
        load_model(save(proto, tmp_path / "m.onnx"))


def test_key_is_the_content_and_not_the_name(tmp_path: Path) -> None:
    first = load_model(save(small_model(), tmp_path / "a.onnx"))
    second = load_model(save(small_model(), tmp_path / "b.onnx"))
    assert (first.name, second.name) == ("a", "b")
    assert first.key == second.key
