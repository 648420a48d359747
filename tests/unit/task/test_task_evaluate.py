from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from gos_adapt.task import METRICS, Preprocessing, Split, evaluate, evaluate_onnx

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
WEIGHT = np.array([[1, 0, 2], [0, 1, 0]], dtype=np.float32)


def linear_model(batch: int | str) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()


@pytest.fixture
def points() -> Split:
    rng = np.random.default_rng(0)
    return Split("selection", rng.normal(size=(11, 2)).astype(np.float32), rng.integers(0, 3, 11))


@pytest.mark.parametrize("batch", ["N", 1, 4, 16])
def test_a_score_does_not_depend_on_the_models_batch(points: Split, batch: int | str) -> None:
    expected = int(((points.inputs @ WEIGHT).argmax(axis=1) == points.targets).sum())
    score = evaluate_onnx(linear_model(batch), points, METRICS["top-1"], batch=3)
    assert (score.correct, score.n, score.split, score.value) == (expected, 11, "selection", expected / 11)


def test_a_session_of_the_callers_is_used_as_it_is(points: Split) -> None:
    session = onnxruntime.InferenceSession(linear_model("N"), providers=["CPUExecutionProvider"])
    by_bytes = evaluate_onnx(linear_model("N"), points, METRICS["top-1"])
    assert evaluate_onnx(session, points, METRICS["top-1"]) == by_bytes


def test_any_callable_can_be_scored(points: Split) -> None:
    by_onnx = evaluate_onnx(linear_model("N"), points, METRICS["top-1"])
    assert evaluate(lambda inputs: inputs @ WEIGHT, points, METRICS["top-1"], batch=2) == by_onnx


def test_an_error_has_no_count_of_right_samples(points: Split) -> None:
    values = Split("test", points.inputs, (points.inputs @ WEIGHT).astype(np.float32) + 0.5)
    score = evaluate_onnx(linear_model("N"), values, METRICS["mean-absolute-error"], batch=4)
    assert score.value == pytest.approx(0.5, abs=1e-6)
    assert score.correct is None


def convolution(x: np.ndarray, weight: np.ndarray, stride: int, pad: int) -> np.ndarray:
    """Cross-correlation by its definition: every window times the kernel."""
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    return np.moveaxis(np.tensordot(windows, weight, axes=([1, 4, 5], [1, 2, 3])), 3, 1)


def resnet_logits(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """The nodes of the stored ResNets, in plain numpy."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    values[model.graph.input[0].name] = x
    for node in model.graph.node:
        take = [values[name] for name in node.input if name]
        attribute = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        match node.op_type:
            case "Conv":
                y = convolution(take[0], take[1], attribute.get("strides", [1])[0], attribute.get("pads", [0])[0])
                y = y + take[2].reshape(-1, 1, 1) if len(take) > 2 else y
            case "BatchNormalization":
                scale, bias, mean, variance = (entry.reshape(-1, 1, 1) for entry in take[1:])
                y = (take[0] - mean) / np.sqrt(variance + attribute.get("epsilon", 1e-5)) * scale + bias
            case "Relu":
                y = np.maximum(take[0], 0)
            case "Add":
                y = take[0] + take[1]
            case "Slice":
                cut = [slice(None)] * take[0].ndim
                for start, stop, axis, step in zip(*take[1:], strict=True):
                    cut[axis] = slice(start, stop, step)
                y = take[0][tuple(cut)]
            case "Pad":
                y = np.pad(take[0], take[1].reshape(2, -1).T)
            case "ReduceMean":
                y = take[0].mean(axis=tuple(attribute["axes"]), keepdims=bool(attribute.get("keepdims", 1)))
            case "Gemm":
                y = take[0] @ (take[1].T if attribute.get("transB", 0) else take[1]) + take[2]
            case "Constant":
                y = numpy_helper.to_array(attribute["value"])
            case "Flatten":
                y = take[0].reshape(len(take[0]), -1)
        values[node.output[0]] = y
    return values[model.graph.output[0].name]


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data beside the repository")
def test_resnet20_gets_the_same_images_right_as_plain_numpy() -> None:
    archive = np.load(DATA / "cifar10" / "cifar10_test_0.npz")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images, labels = archive["images"][:500], archive["labels"][:500]
    path = DATA / "cifar10_resnet" / "resnet20_cifar10.onnx"

    pixels = ((images / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    logits = np.concatenate([resnet_logits(onnx.load(path), part) for part in np.split(pixels, 10)])
    expected = int((logits.argmax(axis=1) == labels).sum())

    split = Split("test", images, labels, Preprocessing("NHWC", scale=(1 / 255,), mean=mean, std=std))
    score = evaluate_onnx(path, split, METRICS["top-1"])
    assert (score.correct, score.n) == (expected, 500)
    assert score.value > 0.88
