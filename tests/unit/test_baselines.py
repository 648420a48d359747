"""What ONNX Runtime cannot quantise, open or run is a finding, not the end of a run."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
from example_models import normal, small_model
from onnx import helper

from device_targets import host
from gos_adapt import baselines
from gos_adapt.contenders import in_onnx_runtime
from gos_adapt.errors import Rejection
from gos_adapt.interleave import interleave
from gos_adapt.model.random_array import random_samples

if TYPE_CHECKING:
    from pathlib import Path

    from gos_adapt.model.model import Model


def convolution(*, opset: int = 17) -> Model:
    weights = [("w", normal(4, 3, 3, 3))]
    return small_model([("Conv", "x w", "y", {"kernel_shape": [3, 3]})], ("N", 3, 8, 8), ["y"], weights, opset=opset)


def unknown_to_onnx_runtime() -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.CopyFrom(convolution().proto)
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Convolve", "nowhere"
    proto.opset_import.append(helper.make_opsetid("nowhere", 1))
    return proto


def test_a_quantised_model_runs_and_the_callers_logging_is_as_it_was(tmp_path: Path) -> None:
    model, root = convolution(), logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    try:
        quantized = baselines.quantize(model, random_samples(model, 4), tmp_path)
        assert root.level == logging.INFO
    finally:
        root.setLevel(level)
    assert isinstance(quantized, onnx.ModelProto)
    assert "QuantizeLinear" in {node.op_type for node in quantized.graph.node}


def indexed_by_its_largest_input() -> Model:
    """A model whose rounded values index beyond a table's end."""
    nodes = [
        ("MatMul", "x w", "h", {}),
        ("ReduceMax", "h", "largest", {"keepdims": 0}),
        ("Cast", "largest", "index", {"to": onnx.TensorProto.INT64}),
        ("Gather", "table index", "y", {"axis": 0}),
    ]
    constants = [("w", np.eye(2, dtype=np.float32)), ("table", np.arange(4, dtype=np.float32))]
    return small_model(nodes, (1, 2), ["y"], constants)


def test_a_quantised_model_that_cannot_be_opened_is_a_reason(tmp_path: Path) -> None:
    model = convolution(opset=12)  # which has no scales for each channel
    refused = baselines.quantize(model, random_samples(model, 1), tmp_path)
    assert isinstance(refused, Rejection)
    assert "Unrecognized attribute: axis" in refused.reason


def test_a_quantised_model_that_cannot_run_is_a_reason(tmp_path: Path) -> None:
    samples = [{"x": np.array([[-50, 3.999]], np.float32)}]
    refused = baselines.quantize(indexed_by_its_largest_input(), samples, tmp_path)
    assert isinstance(refused, Rejection)
    assert "idx=4 must be within" in refused.reason


def test_what_the_quantiser_refuses_is_a_reason(tmp_path: Path) -> None:
    model = replace(convolution(), proto=unknown_to_onnx_runtime())
    refused = baselines.quantize(model, random_samples(model, 1), tmp_path)
    assert isinstance(refused, Rejection)
    assert refused.reason.startswith("ONNX Runtime cannot quantise the model or run it then: ")
    assert "\n" not in refused.reason


def test_a_model_that_onnx_runtime_cannot_open_is_a_failed_measurement() -> None:
    contender = in_onnx_runtime(unknown_to_onnx_runtime(), {"x": normal(1, 3, 8, 8)}, host())
    latency = interleave({"broken": contender}, lambda: None)["broken"]
    assert not latency.ok
    assert str(latency.error).startswith("ONNX Runtime cannot open the model: ")
