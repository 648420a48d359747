"""Models for tests: small ones built by hand, and the trained ones of the data folder beside the repository."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from gos_adapt.model.load import load_model
from gos_adapt.model.model import Model, TensorSpec

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TRAINED = (
    "cifar10_resnet/resnet20_cifar10",
    "mlperf_tiny/resnet8_cifar10",
    "mlperf_tiny/dscnn_kws12",
    "mlperf_tiny/mobilenetv1_025_vww96",
    "mlperf_tiny/ad_autoencoder",
    "mlperf_tiny/streaming_wakeword_dequant",
    "imagenet_models/mobilenet_v1_0.25_128",
    "imagenet_models/mobilenet_v2_1.0_224",
)


@cache
def trained_model(name):
    path = DATA / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"the trained model {name} is not beside the repository")
    return load_model(path)


def small_model(nodes, shape, outputs, constants=(), *, opset=17):
    """A canonical model of one input ``x`` (shape with batch axis) from (op type, inputs, output, attributes) rows."""
    graph = helper.make_graph(
        [helper.make_node(op, inputs.split(), [output], **attributes) for op, inputs, output, attributes in nodes],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    return Model("small", proto, proto, (TensorSpec("x", tuple(shape), "float32"),), ())


def with_output(model, *shape):
    """The model, its output ``y`` described: a shape without batch axis."""
    return replace(model, outputs=(TensorSpec("y", ("N", *shape), "float32"),))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model_input(model, batch=2, seed=0):
    return normal(*model.inputs[0].at_batch(batch), seed=seed)


def in_onnx_runtime(proto, x):
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})


def assert_close(actual, expected, tolerance=1e-5):
    """Within `tolerance` of the expected values' scale."""
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-6)
