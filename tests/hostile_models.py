"""Models that must be refused, each built from one small sound model by one act of damage or malice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from gos_adapt.errors import ModelImportError, UnsupportedOperatorError

if TYPE_CHECKING:
    from collections.abc import Callable

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@dataclass(frozen=True)
class Hostile:
    """Bytes of a file, and how reading it must end: the error and a text its message must hold (a regex)."""

    content: bytes
    says: str
    error: type[ModelImportError] = ModelImportError


def small_model(*, batch: int | str = "N", opset: int = 17) -> onnx.ModelProto:
    """A sound model: x (batch, 1, 4, 4) → Conv → BatchNormalization → Relu → flatten by Shape arithmetic → Gemm → y."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((2, 1, 3, 3)),
        "scale": rng.standard_normal(2),
        "bias": rng.standard_normal(2),
        "mean": rng.standard_normal(2),
        "variance": np.ones(2),
        "fc": rng.standard_normal((32, 3)),
        "fc_bias": rng.standard_normal(3),
    }
    indices = {"first": np.array(0), "rest": np.array([-1])}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["conv"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node(
                "BatchNormalization", ["conv", "scale", "bias", "mean", "variance"], ["norm"], name="norm"
            ),
            helper.make_node("Relu", ["norm"], ["relu"], name="relu"),
            helper.make_node("Shape", ["relu"], ["shape"], name="shape"),
            helper.make_node("Gather", ["shape", "first"], ["batch"], name="batch", axis=0),
            unsqueeze("batch", "batch1", opset),
            helper.make_node("Concat", ["batch1", "rest"], ["flat_shape"], name="flat_shape", axis=0),
            helper.make_node("Reshape", ["relu", "flat_shape"], ["flat"], name="flat"),
            helper.make_node("Gemm", ["flat", "fc", "fc_bias"], ["y"], name="fc"),
        ],
        "small",
        [helper.make_tensor_value_info("x", FLOAT, [batch, 1, 4, 4])],
        [helper.make_tensor_value_info("y", FLOAT, [batch, 3])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
        + [numpy_helper.from_array(array.astype(np.int64), name) for name, array in indices.items()],
    )
    if opset >= 13:
        graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "axes"))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def unsqueeze(source: str, result: str, opset: int) -> NodeProto:
    """Unsqueeze at axis 0: its axes are an attribute before opset 13, an input from then on."""
    if opset < 13:
        return helper.make_node("Unsqueeze", [source], [result], name=result, axes=[0])
    return helper.make_node("Unsqueeze", [source, "axes"], [result], name=result)


def single_node(node: NodeProto, inputs: dict[str, list[int | str]], *, opset: int = 17, **stored: object) -> bytes:
    """Return a model of one node with float inputs; `stored` become initialisers; the output's shape is left open."""
    graph = helper.make_graph(
        [node],
        "single",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(node.output[0], FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return model.SerializeToString()


def damaged(change: Callable[[onnx.GraphProto], object]) -> bytes:
    """Return the small model after `change` was made to its graph."""
    model = small_model()
    change(model.graph)
    return model.SerializeToString()


def hostile_models() -> dict[str, Hostile]:
    """Return every hostile model by what is wrong with it."""
    sound = small_model().SerializeToString()
    return {
        "empty": Hostile(b"", "0 bytes"),
        "text": Hostile(b"#!/bin/sh\necho a model\n" * 20, "not an ONNX model"),
        "picture": Hostile(b"\x89PNG\r\n\x1a\n" + bytes(200), "not an ONNX model"),
        "truncated": Hostile(sound[: len(sound) // 2], "not an ONNX model, or a damaged one"),
        "without a graph": Hostile(helper.make_model(onnx.GraphProto()).SerializeToString()[:4], "no graph"),
        "without nodes": Hostile(damaged(_remove_nodes), "must be at least one"),
        "without inputs": Hostile(damaged(_remove_inputs), "0 inputs"),
        "without outputs": Hostile(damaged(lambda g: g.ClearField("output")), "0 outputs"),
        "old opset": Hostile(_with_opset(8), "opset 8 .* 9 to"),
        "future opset": Hostile(_with_opset(999), "opset 999"),
        "two opsets": Hostile(_with_opset(17, 18), "one standard opset"),
        "local functions": Hostile(_with_function(), "inline_local_functions"),
        "cycle": Hostile(damaged(_make_cycle), "cycle through"),
        "nodes out of order": Hostile(damaged(_reverse_nodes), "topological"),
        "missing initialiser": Hostile(damaged(lambda g: g.initializer.pop(0)), r"nothing defines: w \(used by conv\)"),
        "undefined output": Hostile(damaged(lambda g: _rename(g.output[0], "z")), "nothing defines: z"),
        "tensor defined twice": Hostile(damaged(lambda g: g.node.append(g.node[2])), "more than once: relu"),
        "wrong-typed attribute": Hostile(damaged(_mistype_attribute), "not a valid ONNX model"),
        "unknown attribute": Hostile(damaged(_add_attribute), "not a valid ONNX model.*colour"),
        "wrong channels": Hostile(damaged(lambda g: _resize_input(g, 1, 7)), "Input channels C"),
        "declared output": Hostile(damaged(_declare_output), "GiB"),
        "weight shorter than declared": Hostile(damaged(_enlarge_weight), "declares 1073741824 bytes and stores 72"),
        "weight of negative size": Hostile(damaged(_negative_weight), "negative dimension"),
        "weight of strings": Hostile(damaged(lambda g: _retype_weight(g, TensorProto.STRING)), "element type STRING"),
        "NaN weight": Hostile(damaged(lambda g: _spoil_weight(g, np.nan)), "tensor w holds 1 NaN"),
        "infinite weight": Hostile(damaged(lambda g: _spoil_weight(g, np.inf)), "tensor w holds 1 NaN or infinite"),
        "negative variance": Hostile(damaged(_negative_variance), "NaN"),
        "dynamic height": Hostile(damaged(lambda g: _resize_input(g, 2, "h")), r"axis 2 .*\(h\).*make_dynamic_shape"),
        "input of zero height": Hostile(damaged(lambda g: _resize_input(g, 2, 0)), "axis 2 .* size 0"),
        "input without shape": Hostile(damaged(_forget_input_shape), "x has no shape"),
        "float16 input": Hostile(damaged(_float16_input), "FLOAT16.*float32"),
        "sparse weights": Hostile(damaged(lambda g: g.sparse_initializer.add()), "sparse"),
        "huge input": Hostile(damaged(lambda g: _resize_input(g, 2, 2**30)), "GiB"),
        "name with control characters": Hostile(damaged(_ring_the_bell), r"nothing defines: \[31m evil \(used"),
        "3 GB from ConstantOfShape": Hostile(_constant_of_shape(), "GiB"),
        "3 GB from Expand": Hostile(_expand(), "GiB"),
        "3 GB from Tile": Hostile(_tile(), "GiB"),
        "bomb of doubling shapes": Hostile(_doubling_shapes(), "too long|GiB"),
        "unknown size from shape arithmetic": Hostile(_hidden_size(), "depends on the values|GiB"),
        "shape depends on values": Hostile(_non_zero(), "depends on the values of the input"),
        "LSTM": Hostile(_lstm(), r"LSTM \(rnn\).*unrolled", UnsupportedOperatorError),
        "If": Hostile(_if(), r"If \(choice\).*branch", UnsupportedOperatorError),
        "custom domain": Hostile(_custom_domain(), r"com\.acme\.Magic \(spell\)", UnsupportedOperatorError),
        "two unknown operators": Hostile(
            damaged(_unknown_operators), r"Bernoulli \(conv\); Hoptial \(norm, relu\)", UnsupportedOperatorError
        ),
        "quantised": Hostile(_quantized(), r"QuantizeLinear \(q\).*float32 model", UnsupportedOperatorError),
    }


def _remove_nodes(graph: onnx.GraphProto) -> None:
    del graph.node[:]
    graph.output[0].CopyFrom(graph.input[0])


def _remove_inputs(graph: onnx.GraphProto) -> None:
    del graph.input[:]
    graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 4, 4), np.float32), "x"))


def _with_opset(*versions: int) -> bytes:
    model = small_model()
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid("" if i == 0 else "ai.onnx", v) for i, v in enumerate(versions))
    return model.SerializeToString()


def _with_function() -> bytes:
    model = small_model()
    node = helper.make_node("Relu", ["a"], ["b"])
    model.functions.append(helper.make_function("local", "f", ["a"], ["b"], [node], model.opset_import))
    return model.SerializeToString()


def _make_cycle(graph: onnx.GraphProto) -> None:
    graph.node[0].input[0] = "relu"


def _reverse_nodes(graph: onnx.GraphProto) -> None:
    nodes = list(graph.node)[::-1]
    del graph.node[:]
    graph.node.extend(nodes)


def _rename(value: onnx.ValueInfoProto, name: str) -> None:
    value.name = name


def _mistype_attribute(graph: onnx.GraphProto) -> None:
    del graph.node[0].attribute[:]
    graph.node[0].attribute.append(AttributeProto(name="pads", type=AttributeProto.FLOAT, f=1.0))


def _add_attribute(graph: onnx.GraphProto) -> None:
    graph.node[2].attribute.append(helper.make_attribute("colour", 3))


def _resize_input(graph: onnx.GraphProto, axis: int, size: int | str) -> None:
    dim = graph.input[0].type.tensor_type.shape.dim[axis]
    if isinstance(size, str):
        dim.dim_param = size
    else:
        dim.dim_value = size


def _declare_output(graph: onnx.GraphProto) -> None:
    graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, [30_000, 30_000]))


def _enlarge_weight(graph: onnx.GraphProto) -> None:
    graph.initializer[0].dims[:] = [2**28]


def _negative_weight(graph: onnx.GraphProto) -> None:
    graph.initializer[0].dims[0] = -2


def _retype_weight(graph: onnx.GraphProto, data_type: int) -> None:
    graph.initializer[0].data_type = data_type


def _spoil_weight(graph: onnx.GraphProto, value: float) -> None:
    array = numpy_helper.to_array(graph.initializer[0]).copy()
    array.flat[0] = value
    graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))


def _negative_variance(graph: onnx.GraphProto) -> None:
    variance = next(tensor for tensor in graph.initializer if tensor.name == "variance")
    variance.CopyFrom(numpy_helper.from_array(np.array([1, -1], np.float32), "variance"))


def _forget_input_shape(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.ClearField("shape")


def _float16_input(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def _ring_the_bell(graph: onnx.GraphProto) -> None:
    graph.node[0].input[1] = "\x1b[31m\n\a\revil"


def _unknown_operators(graph: onnx.GraphProto) -> None:
    for node, op_type in zip(graph.node, ["Bernoulli", "Hoptial", "Hoptial"], strict=False):
        node.op_type = op_type


def _constant_of_shape() -> bytes:
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["ones"]),
        helper.make_node("Add", ["x", "ones"], ["y"]),
    ]
    return _graph(nodes, [1], size=np.array([800_000_000], np.int64))


def _expand() -> bytes:
    node = helper.make_node("Expand", ["x", "size"], ["y"])
    return single_node(node, {"x": [1, 1]}, size=np.array([30_000, 30_000], np.int64))


def _tile() -> bytes:
    node = helper.make_node("Tile", ["x", "repeats"], ["y"])
    return single_node(node, {"x": [1, 1000]}, repeats=np.array([1, 1_000_000], np.int64))


def _doubling_shapes() -> bytes:
    """A shape vector that doubles in every node: 2^40 elements from a kilobyte."""
    nodes = [helper.make_node("Concat", [f"s{i}", f"s{i}"], [f"s{i + 1}"], axis=0) for i in range(40)]
    nodes = [helper.make_node("Shape", ["x"], ["s0"]), *nodes]
    nodes += [helper.make_node("Cast", ["s40"], ["z"], to=FLOAT), helper.make_node("ReduceSum", ["z"], ["y"])]
    return _graph(nodes, ["N", 4])


def _hidden_size() -> bytes:
    """A size that ONNX's shape inference cannot compute: it must not be computed blindly either."""
    nodes = [
        helper.make_node("Pow", ["ten", "nine"], ["power"]),
        helper.make_node("Cast", ["power"], ["size"], to=INT64),
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0),
        helper.make_node("Add", ["x", "zero"], ["y"]),
    ]
    return _graph(nodes, ["N", 4], ten=np.array([10.0], np.float32), nine=np.array([9.0], np.float32))


def _non_zero() -> bytes:
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"], name="where"),
        helper.make_node("Cast", ["where"], ["y"], to=FLOAT),
    ]
    return _graph(nodes, ["N", 4])


def _lstm() -> bytes:
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], name="rnn", hidden_size=2)
    weights = {"w": np.zeros((1, 8, 3), np.float32), "r": np.zeros((1, 8, 2), np.float32)}
    return single_node(node, {"x": [5, 1, 3]}, **weights)


def _if() -> bytes:
    branch = helper.make_graph([], "branch", [], [helper.make_tensor_value_info("x", FLOAT, [1])])
    node = helper.make_node("If", ["flag"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    return single_node(node, {"x": [1]}, flag=np.array(True))


def _custom_domain() -> bytes:
    model = onnx.load_model_from_string(
        single_node(helper.make_node("Magic", ["x"], ["y"], name="spell", domain="com.acme"), {"x": [1, 4]})
    )
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    return model.SerializeToString()


def _quantized() -> bytes:
    node = helper.make_node("QuantizeLinear", ["x", "scale"], ["y"], name="q")
    return single_node(node, {"x": [1, 4]}, scale=np.array(0.1, np.float32))


def _graph(nodes: list[NodeProto], input_shape: list[int | str], **stored: object) -> bytes:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, input_shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()
