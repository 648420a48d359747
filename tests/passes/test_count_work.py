from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from compiling import graph, random
from onnx import helper

from tvm_passes.count_work import Work
from tvm_passes.frontend import import_onnx
from tvm_passes.pipeline import fuse
from tvm_passes.schedules import Cpu

AVX512 = Cpu(lanes=16, registers=32, threads=2)


def flops(nodes: list[onnx.NodeProto], shape: tuple[int, ...], weights: dict[str, Any], rank: int = 4) -> int:
    fused = fuse(import_onnx(graph(nodes, shape, weights, {"y": rank}), 1), AVX512)
    return sum(work.flops for work in fused.work)


def conv(**attributes: Any) -> list[onnx.NodeProto]:
    return [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], **attributes)]


@pytest.mark.parametrize(
    ("attributes", "weight", "expected"),
    [
        ({}, (32, 16, 3, 3), 2 * 32 * 16 * 9 * 12 * 12),
        ({"strides": [2, 2]}, (32, 16, 3, 3), 2 * 32 * 16 * 9 * 6 * 6),
        ({"group": 16}, (16, 1, 3, 3), 2 * 16 * 9 * 12 * 12),
        ({"group": 4}, (32, 4, 3, 3), 2 * 32 * 4 * 9 * 12 * 12),
    ],
    ids=["3x3", "stride 2", "depthwise", "grouped"],
)
def test_a_convolution_is_two_operations_for_each_weight_at_each_place(
    attributes: dict[str, Any], weight: tuple[int, ...], expected: int
) -> None:
    assert flops(conv(**attributes), (1, 16, 12, 12), {"w": random(*weight)}) == expected


def test_bias_and_activation_are_one_operation_an_element_each() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    weights = {"w": random(32, 16, 3, 3), "b": random(32)}
    assert flops(nodes, (1, 16, 12, 12), weights) == (2 * 16 * 9 + 1 + 1) * 32 * 12 * 12


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2]), 4 * 16 * 6 * 6),
        (helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 3, 1]), 0),
        (helper.make_node("Exp", ["x"], ["y"]), 16 * 12 * 12),
    ],
    ids=["max pool", "transpose", "exp"],
)
def test_other_kernels_are_counted_by_their_arithmetic(node: onnx.NodeProto, expected: int) -> None:
    assert flops([node], (1, 16, 12, 12), {}) == expected


def test_a_matrix_product_is_two_operations_for_each_weight() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    assert flops(nodes, (1, 64), {"w": np.ones((64, 10))}, rank=2) == 2 * 64 * 10


def test_the_order_of_calls_is_that_of_the_kernels() -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["g"]),
        helper.make_node("Conv", ["g", "w"], ["y"], kernel_shape=[1, 1]),
    ]
    fused = fuse(import_onnx(graph(nodes, (1, 16, 4, 4), {"w": random(32, 16, 1, 1)}, {"y": 4}), 1), AVX512)
    assert fused.tensors == (("g",), ("y",))
    assert fused.work == (
        Work(16 * 16 + 16, 4 * (16 * 16 + 16)),  # a sum of 16 places, then their mean
        Work(2 * 32 * 16, 4 * (16 + 32 * 16 + 32)),
    )
