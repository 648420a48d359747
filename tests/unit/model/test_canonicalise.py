from __future__ import annotations

import numpy as np
import onnx
import pytest
from hostile_models import single_node, small_model
from onnx import TensorProto, helper, numpy_helper

from gos_adapt.errors import ModelImportError
from gos_adapt.model.canonicalise import canonicalise


def model(nodes: list[onnx.NodeProto], shape: list[int | str], **stored: object) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def shape_of(proto: onnx.ModelProto, name: str) -> list[int | str]:
    value = next(v for v in [*proto.graph.value_info, *proto.graph.output] if v.name == name)
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def weight(proto: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(tensor for tensor in proto.graph.initializer if tensor.name == name))


def test_canonical_form_is_conv_relu_reshape_gemm_and_leaves_the_original_alone() -> None:
    original = small_model()
    before = original.SerializeToString()
    proto = canonicalise(original)
    assert operators(proto) == ["Conv", "Relu", "Reshape", "Gemm"]
    assert original.SerializeToString() == before
    onnx.checker.check_model(proto, full_check=True)


def test_canonicalise_is_deterministic_and_idempotent() -> None:
    first, second = canonicalise(small_model()), canonicalise(small_model())
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    again = canonicalise(first)
    assert again.graph.node == first.graph.node
    assert {t.name for t in again.graph.initializer} == {t.name for t in first.graph.initializer}


def test_batch_normalization_folds_to_the_weights_of_its_definition() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["y"], epsilon=0.0),
    ]
    statistics = {"g": [3.0], "b": [5.0], "m": [7.0], "v": [4.0]}
    arrays = {name: np.array(value, np.float32) for name, value in statistics.items()}
    proto = canonicalise(model(nodes, ["N", 1, 2, 2], w=np.full((1, 1, 1, 1), 2, np.float32), **arrays))
    assert operators(proto) == ["Conv"]
    # y = 3 (2x - 7) / sqrt(4) + 5 = 3x - 5.5
    assert weight(proto, proto.graph.node[0].input[1]).item() == 3
    assert weight(proto, proto.graph.node[0].input[2]).item() == -5.5


def test_batch_normalization_after_something_else_stays() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("BatchNormalization", ["r", "one", "one", "one", "one"], ["y"]),
    ]
    assert operators(canonicalise(model(nodes, ["N", 1, 2], one=np.ones(1, np.float32)))) == [
        "Relu",
        "BatchNormalization",
    ]


def test_batch_normalization_of_a_convolution_used_twice_stays() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "one", "one", "one", "one"], ["n"]),
        helper.make_node("Add", ["c", "n"], ["y"]),
    ]
    stored = {"w": np.ones((1, 1, 1, 1), np.float32), "one": np.ones(1, np.float32)}
    assert operators(canonicalise(model(nodes, ["N", 1, 2, 2], **stored))) == ["Conv", "BatchNormalization", "Add"]


@pytest.mark.parametrize(
    ("pads", "value", "folds"),
    [
        ([0, 0, 1, 2, 0, 0, 3, 4], 0.0, True),
        ([0, 1, 0, 0, 0, 0, 0, 0], 0.0, False),
        ([0, 0, 1, 1, 0, 0, 1, 1], 1.0, False),
    ],
)
def test_pad_folds_into_the_convolution_when_zero_and_spatial(pads: list[int], value: float, folds: bool) -> None:
    nodes = [
        helper.make_node("Pad", ["x", "pads", "value"], ["p"]),
        helper.make_node("Conv", ["p", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    channels = 1 + pads[1]
    stored = {"pads": np.array(pads, np.int64), "value": np.array(value, np.float32)}
    proto = canonicalise(model(nodes, ["N", 1, 5, 5], w=np.ones((1, channels, 3, 3), np.float32), **stored))
    assert operators(proto) == (["Conv"] if folds else ["Pad", "Conv"])
    if folds:
        (attribute,) = (a for a in proto.graph.node[0].attribute if a.name == "pads")
        assert list(attribute.ints) == [2, 3, 4, 5]


def test_identity_dropout_constant_and_unused_initialisers_go() -> None:
    nodes = [
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.array(2, np.float32))),
        helper.make_node("Add", ["two", "two"], ["four"]),
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("Dropout", ["i"], ["d"]),
        helper.make_node("Mul", ["d", "four"], ["m"]),
        helper.make_node("Relu", ["x"], ["dead"]),
        helper.make_node("Identity", ["m"], ["y"]),
    ]
    proto = canonicalise(model(nodes, ["N", 3], unused=np.ones(9, np.float32)))
    assert operators(proto) == ["Mul"]
    assert proto.graph.node[0].output == ["y"]
    assert [tensor.name for tensor in proto.graph.initializer] == ["four"]
    assert weight(proto, "four") == 4


def test_flattening_by_shape_arithmetic_becomes_a_constant_reshape() -> None:
    proto = canonicalise(small_model())
    reshape = next(node for node in proto.graph.node if node.op_type == "Reshape")
    assert weight(proto, reshape.input[1]).tolist() == [-1, 32]
    assert shape_of(proto, "flat") == ["N", 32]


def test_batch_is_called_n_whatever_the_exporter_called_it() -> None:
    for batch in ("batch_size", ""):
        proto = canonicalise(small_model(batch=batch))
        assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
        assert shape_of(proto, "y") == ["N", 3]


def test_axis_that_is_a_multiple_of_the_batch_is_written_as_one() -> None:
    nodes = [helper.make_node("Reshape", ["x", "rows"], ["r"]), helper.make_node("Reshape", ["r", "back"], ["y"])]
    stored = {"rows": np.array([-1, 2], np.int64), "back": np.array([-1, 6], np.int64)}
    proto = canonicalise(model(nodes, ["N", 6], **stored))
    assert shape_of(proto, "r") == ["3*N", 2]
    assert shape_of(proto, "y") == ["N", 6]


def test_output_that_grows_with_the_batch_elsewhere_is_refused() -> None:
    nodes = [helper.make_node("Transpose", ["x"], ["y"])]
    with pytest.raises(ModelImportError, match="only axis 0 may grow with the batch"):
        canonicalise(model(nodes, ["N", 6]))


def test_output_that_is_constant_is_refused() -> None:
    nodes = [helper.make_node("Add", ["one", "one"], ["y"])]
    with pytest.raises(ModelImportError, match="does not depend on any input"):
        canonicalise(model(nodes, ["N", 6], one=np.ones(3, np.float32)))


def test_computing_in_double_is_refused() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["d"], ["y"], to=TensorProto.FLOAT),
    ]
    with pytest.raises(ModelImportError, match="computes in DOUBLE"):
        canonicalise(model(nodes, ["N", 6]))


def test_clip_bounds_survive() -> None:
    node = helper.make_node("Clip", ["x", "low", "high"], ["y"])
    bounds = {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    proto = canonicalise(onnx.load_model_from_string(single_node(node, {"x": ["N", 2]}, **bounds)))
    assert list(proto.graph.node[0].input) == ["x", "low", "high"]
