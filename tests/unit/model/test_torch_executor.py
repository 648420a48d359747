from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from gos_adapt.errors import UnsupportedOperatorError
from gos_adapt.model.torch_executor import TorchExecutor
from gos_adapt.model.torch_ops import TORCH_OPS

X4 = (2, 4, 6, 5)
ELEMENTWISE = "Abs Ceil Cos Erf Exp Floor Neg Round Sign Sin Relu Sigmoid HardSwish Tanh Softplus Mish Selu Identity"
POSITIVE = "Log Sqrt Reciprocal"
UPSAMPLE = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
COMPARISONS = "Equal Greater GreaterOrEqual Less LessOrEqual"


def ints(*values):
    return np.array(values, np.int64)


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# (op type, shape of the feature x, the other inputs with None for an absent one and "x" for x again, attributes)
CASES = [
    *((op, X4, [], {}) for op in ELEMENTWISE.split()),
    *((op, X4, ["x"], {}) for op in ("Add", "Sub", "Mul", "Div")),
    *((op, X4, [normal(4, 1, 1)], {}) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")),
    ("Sum", X4, [normal(4, 1, 1), "x"], {}),
    ("Pow", X4, [np.float32(2)], {}),
    ("Conv", X4, [normal(6, 4, 3, 3), normal(6)], {"pads": [1, 1, 1, 1]}),
    ("Conv", X4, [normal(6, 2, 3, 2)], {"group": 2, "strides": [2, 1], "pads": [0, 1, 1, 0], "dilations": [1, 2]}),
    ("Conv", X4, [normal(6, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", X4, [normal(6, 4, 2, 2)], {"auto_pad": "SAME_LOWER"}),
    ("Conv", (2, 4, 9), [normal(3, 4, 3), normal(3)], {"strides": [2]}),
    ("ConvTranspose", X4, [normal(4, 3, 3, 3), normal(6)], {"group": 2, "strides": [2, 2], "pads": [1, 0, 0, 1]}),
    ("MaxPool", X4, [], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]}),
    ("MaxPool", X4, [], {"kernel_shape": [2, 2], "dilations": [2, 1]}),
    ("AveragePool", X4, [], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]}),
    ("AveragePool", X4, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("GlobalAveragePool", X4, [], {}),
    ("GlobalMaxPool", X4, [], {}),
    ("Gemm", (3, 4), [normal(5, 4), normal(5)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", (3, 4), [normal(3, 5)], {"transA": 1}),
    ("MatMul", (2, 3, 4), [normal(4, 5)], {}),
    ("Einsum", (2, 3, 4), [normal(4, 5)], {"equation": "nij,jk->nki"}),
    ("BatchNormalization", X4, [normal(4), normal(4), normal(4), abs(normal(4))], {"epsilon": 0.01}),
    ("LayerNormalization", (2, 3, 8), [normal(8), normal(8)], {}),
    ("LayerNormalization", (2, 3, 8), [normal(3, 8)], {"axis": 1}),
    ("InstanceNormalization", X4, [normal(4), normal(4)], {}),
    ("GroupNormalization", X4, [normal(2), normal(2)], {"num_groups": 2, "opset": 18}),
    ("GroupNormalization", X4, [normal(4), normal(4)], {"num_groups": 2, "opset": 21}),
    ("LeakyRelu", X4, [], {"alpha": 0.03}),
    ("PRelu", X4, [normal(4, 1, 1)], {}),
    ("Elu", X4, [], {"alpha": 0.7}),
    ("HardSigmoid", X4, [], {"alpha": 0.3}),
    ("Gelu", X4, [], {"approximate": "tanh", "opset": 20}),
    ("Softmax", X4, [], {"axis": 1}),
    ("LogSoftmax", X4, [], {}),
    ("Clip", X4, [np.float32(0), np.float32(0.6)], {}),
    ("Clip", X4, [None, np.float32(0.6)], {}),
    ("Clip", X4, [], {}),
    ("ReduceMean", X4, [], {"axes": [2, 3], "keepdims": 0, "opset": 17}),
    ("ReduceMean", X4, [ints(-1)], {"opset": 18}),
    ("ReduceSum", X4, [], {}),
    ("ReduceSum", X4, [], {"noop_with_empty_axes": 1}),
    *(
        (op, X4, [], {"axes": [1, -1]})
        for op in ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare")
    ),
    ("ArgMax", X4, [], {"axis": 1, "keepdims": 0}),
    ("Reshape", X4, [ints(0, -1, 5)], {}),
    ("Flatten", X4, [], {"axis": 2}),
    ("Transpose", X4, [], {"perm": [0, 2, 3, 1]}),
    ("Squeeze", (2, 1, 3, 1), [ints(1)], {}),
    ("Unsqueeze", (2, 3), [ints(0, -1)], {}),
    ("Concat", X4, ["x", normal(2, 1, 6, 5)], {"axis": 1}),
    ("Split", X4, [ints(1, 3)], {"axis": 1, "outputs": 2}),
    ("Split", X4, [], {"axis": 3, "num_outputs": 2, "outputs": 2, "opset": 18}),
    ("Slice", X4, [ints(0, 1), ints(2**62, -1), ints(2, 3), ints(2, 1)], {}),
    ("Slice", X4, [ints(-1), ints(-(2**62)), ints(1), ints(-1)], {}),
    ("Pad", X4, [ints(0, 1, 0, 2, 0, 2, 1, 0)], {}),
    ("Pad", X4, [ints(1, 2), np.float32(3), ints(2)], {"opset": 18}),
    ("Pad", X4, [ints(0, 0, 1, 2, 0, 0, 3, 1)], {"mode": "reflect"}),
    ("Gather", X4, [ints(0, -1)], {"axis": 1}),
    ("Expand", (2, 1, 3), [ints(4, 1)], {}),
    ("Tile", (2, 3), [ints(2, 1)], {}),
    ("Cast", X4, [], {"to": TensorProto.INT32}),
    ("DepthToSpace", X4, [], {"blocksize": 2}),
    ("DepthToSpace", X4, [], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", (2, 3, 4, 6), [], {"blocksize": 2}),
    ("Resize", X4, [None, np.float32([1, 1, 2, 3])], UPSAMPLE),
    ("Resize", X4, [None, None, ints(2, 4, 9, 7)], {"mode": "linear"}),
]


def model_of(nodes, inputs, outputs, initializers=(), *, opset=17):
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(proto)


def one_op(op, shape, arguments, attributes):
    attributes = dict(attributes)
    opset, outputs = attributes.pop("opset", 17), attributes.pop("outputs", 1)
    if op == "Mish":
        opset = 18
    names = ["x", *("" if a is None else "x" if isinstance(a, str) else f"c{i}" for i, a in enumerate(arguments))]
    constants = [(f"c{i}", a) for i, a in enumerate(arguments) if isinstance(a, np.ndarray | np.generic)]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, **attributes)
    return model_of([node], [("x", shape)], results, constants, opset=opset)


def in_onnx_runtime(proto, **inputs):
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, inputs)


def assert_same(proto, x):
    ours = TorchExecutor(proto)(torch.from_numpy(x))
    ours = ours if isinstance(ours, tuple) else (ours,)
    for mine, expected in zip(ours, in_onnx_runtime(proto, x=x), strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_an_operator_means_what_it_means_in_onnx_runtime(case):
    assert_same(one_op(*case), normal(*case[1], seed=0))


@pytest.mark.parametrize("op", POSITIVE.split())
def test_an_operator_on_positive_numbers_means_what_it_means_in_onnx_runtime(op):
    assert_same(one_op(op, X4, [], {}), abs(normal(*X4, seed=0)) + 0.1)


def logic_model():
    """Comparisons, logic, `Where`, and shapes computed at run time: what exported attention masks are made of."""
    nodes = [
        *(helper.make_node(op, ["x", "zero"], [op]) for op in COMPARISONS.split()),
        helper.make_node("And", ["Greater", "LessOrEqual"], ["none"]),
        helper.make_node("Or", ["GreaterOrEqual", "none"], ["some"]),
        helper.make_node("Not", ["some"], ["rest"]),
        helper.make_node("Or", ["rest", "Equal"], ["any"]),
        helper.make_node("Or", ["any", "Less"], ["mask"]),
        helper.make_node("Shape", ["x"], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "four"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=numpy_helper.from_array(np.float32([1]))),
        helper.make_node("Where", ["mask", "x", "ones"], ["kept"]),
        helper.make_node("Range", ["first", "last", "one"], ["positions"]),
        helper.make_node("Mul", ["kept", "positions"], ["y"]),
    ]
    constants = [
        ("zero", np.float32(0)),
        ("four", ints(4)),
        ("first", np.float32(0)),
        ("last", np.float32(4)),
        ("one", np.float32(1)),
    ]
    return model_of(nodes, [("x", ("N", 4))], ["y"], constants)


def test_masks_and_run_time_shapes_mean_what_they_mean_in_onnx_runtime():
    assert_same(logic_model(), normal(3, 4, seed=0))


def test_every_operator_has_a_case():
    used = {case[0] for case in CASES} | set(POSITIVE.split()) | {node.op_type for node in logic_model().graph.node}
    assert used == TORCH_OPS.keys()


def small_net():
    nodes = [
        helper.make_node("Conv", ["x", "w.1", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["c", "low", "high"], ["r"]),
        helper.make_node("Add", ["r", "x"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "training"], ["y"]),
    ]
    constants = [
        ("w.1", normal(3, 3, 3, 3)),
        ("b", normal(3)),
        ("low", np.float32(0)),
        ("high", np.float32(6)),
        ("training", normal(3, 2)),
    ]
    return model_of(nodes, [("x", ("N", 3, 5, 5))], ["y"], constants)


def test_weights_are_named_as_in_onnx_and_bounds_are_not_weights():
    assert TorchExecutor(small_net()).weights.keys() == {"w.1", "b", "training"}


def test_gradients_reach_every_weight():
    executor = TorchExecutor(small_net())
    executor(torch.from_numpy(normal(2, 3, 5, 5))).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in executor.weights.values())


def test_any_tensor_can_be_captured_and_started_from():
    executor = TorchExecutor(small_net())
    x = torch.from_numpy(normal(2, 3, 5, 5))
    r, y = executor.compute({"x": x}, ["r", "y"])
    assert r.min() == 0.0
    (again,) = executor.compute({"x": x, "r": r}, ["y"])
    torch.testing.assert_close(again, y)
    (shifted,) = executor.compute({"x": x, "r": r + 1}, ["y"])
    assert not torch.allclose(shifted, y)


def test_only_what_is_wanted_is_computed():
    executor = TorchExecutor(small_net())
    (y,) = executor.compute({"s": torch.ones(1, 3, 5, 5)}, ["y"])
    np.testing.assert_allclose(
        y.detach().numpy(), executor.weights["training"].detach().sum(0, keepdim=True), rtol=1e-5
    )


def test_a_missing_input_is_named():
    with pytest.raises(ValueError, match=r"y cannot be computed from \['r'\]: \['x'\] missing"):
        TorchExecutor(small_net()).compute({"r": torch.ones(1, 3, 5, 5)}, ["y"])


def test_trained_weights_are_written_back_and_the_given_model_is_not_touched():
    proto = small_net()
    before = proto.SerializeToString(deterministic=True)
    executor = TorchExecutor(proto)
    optimiser = torch.optim.SGD(executor.weights.values(), lr=0.1)
    x = normal(2, 3, 5, 5)
    executor(torch.from_numpy(x)).square().sum().backward()
    optimiser.step()
    trained = executor.write_back()
    (expected,) = in_onnx_runtime(trained, x=x)
    np.testing.assert_allclose(executor(torch.from_numpy(x)).detach(), expected, rtol=1e-4, atol=1e-5)
    assert proto.SerializeToString(deterministic=True) == before
    assert trained.SerializeToString(deterministic=True) != before
    assert [i.name for i in trained.graph.initializer] == [i.name for i in proto.graph.initializer]


def test_operators_without_a_torch_form_are_all_named():
    nodes = [helper.make_node("Hardmax", ["x"], ["h"]), helper.make_node("Det", ["h"], ["y"])]
    with pytest.raises(UnsupportedOperatorError, match="Det, Hardmax"):
        TorchExecutor(model_of(nodes, [("x", (2, 2))], ["y"]))
