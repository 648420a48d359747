from __future__ import annotations

import numpy as np
import onnx
import pytest
from example_models import (
    TRAINED,
    assert_close,
    in_onnx_runtime,
    model_input,
    normal,
    small_model,
    trained_model,
)

from gos_adapt.model.model import Replacement
from gos_adapt.model.sites import find_sites
from gos_adapt.model.splice import splice
from gos_adapt.operators.canonical import canonicalise
from gos_adapt.operators.evaluate import evaluate
from gos_adapt.operators.text import parse

CONV = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}


def operator(text):
    """A canonical operator; the texts here have at most one weight of a kind, so weight order is that of the text."""
    return canonicalise(parse(text)).graph


def residual_model():
    """conv-relu stem, one residual block with relu, global pooling, classifier."""
    nodes = [
        ("Conv", "x w0 b0", "c0", CONV),
        ("Relu", "c0", "r0", {}),
        ("Conv", "r0 w1 b1", "c1", CONV),
        ("Relu", "c1", "r1", {}),
        ("Conv", "r1 w2 b2", "c2", CONV),
        ("Add", "c2 r0", "s", {}),
        ("Relu", "s", "r2", {}),
        ("GlobalAveragePool", "r2", "p", {}),
        ("Flatten", "p", "f", {}),
        ("Gemm", "f w3 b3", "y", {}),
    ]
    convolutions = [(f"w{i}", normal(4, 4 if i else 3, 3, 3, seed=i)) for i in range(3)]
    biases = [(f"b{i}", normal(4, seed=9 + i)) for i in range(3)]
    constants = [*convolutions, *biases, ("w3", normal(4, 2)), ("b3", normal(2))]
    return small_model(nodes, ("N", 3, 6, 6), ["y"], constants)


def site(model, name):
    return next(site for site in find_sites(model) if site.name == name)


def own(site):
    return Replacement(site.name, site.operator, site.weights)


def op_types(model):
    return [node.op_type for node in model.proto.graph.node]


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("whole_branches", [False, True])
def test_replacing_every_site_by_its_own_operator_keeps_the_function(name, whole_branches):
    model = trained_model(name)
    before = {site.name: site for site in find_sites(model)}
    chosen = [site for site in before.values() if (site.kind == "branch") == whole_branches]
    spliced = splice(model, [own(site) for site in chosen])
    x = model_input(model)
    assert_close(in_onnx_runtime(spliced.proto, x)[0], in_onnx_runtime(model.original, x)[0])
    assert [value.name for value in spliced.proto.graph.output] == [value.name for value in model.original.graph.output]
    after = {site.name: site for site in find_sites(spliced)}
    for site in chosen:
        assert after[site.name].input_shape == site.input_shape
        assert after[site.name].output_shape == site.output_shape


def test_a_spliced_convolution_is_written_as_models_write_it():
    model = residual_model()
    spliced = splice(model, [own(site(model, "r0"))])
    assert op_types(spliced) == op_types(model)
    (again,) = (site for site in find_sites(spliced) if site.name == "r0")
    assert again.operator == site(model, "r0").operator
    for new, old in zip(again.weights, site(model, "r0").weights, strict=True):
        np.testing.assert_array_equal(new, old)


def test_everything_else_is_left_as_it_was():
    model = residual_model()
    before = model.proto.SerializeToString(deterministic=True)
    spliced = splice(model, [own(site(model, "r1"))])
    assert model.proto.SerializeToString(deterministic=True) == before
    assert spliced.original is model.original
    assert spliced.proto.graph.input == model.proto.graph.input
    assert spliced.proto.graph.output == model.proto.graph.output
    kept = {tensor.name: tensor for tensor in spliced.proto.graph.initializer}
    assert all(kept[tensor.name] == tensor for tensor in model.proto.graph.initializer if tensor.name[1] != "1")
    assert "w1" not in kept


def test_the_spliced_model_is_checked_has_all_shapes_and_a_dynamic_batch():
    model = residual_model()
    spliced = splice(model, [Replacement("r1", operator("v0 = input 4x6x6\nv1 = zero(v0, shape=4x6x6)"), ())])
    onnx.checker.check_model(spliced.proto, full_check=True)
    shapes = {value.name for value in (*spliced.proto.graph.value_info, *spliced.proto.graph.output)}
    assert {name for node in spliced.proto.graph.node for name in node.output} <= shapes
    assert spliced.proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert in_onnx_runtime(spliced.proto, normal(5, 3, 6, 6))[0].shape == (5, 2)


def test_a_branch_replaced_by_relu_of_its_input_vanishes_after_a_relu():
    model = residual_model()
    spliced = splice(model, [Replacement("r2", operator("v0 = input 4x6x6\nv1 = relu(v0)"), ())])
    assert op_types(spliced) == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert {tensor.name for tensor in spliced.proto.graph.initializer} == {"w0", "b0", "w3", "b3"}


def test_an_identity_leaves_no_node():
    model = residual_model()
    spliced = splice(model, [Replacement("r1", operator("v0 = input 4x6x6\nv1 = identity(v0)"), ())])
    assert "Identity" not in op_types(spliced)
    assert next(node for node in spliced.proto.graph.node if node.output[0] == "c2").input[0] == "r0"


def test_an_identity_before_an_output_keeps_the_outputs_name():
    model = small_model([("Conv", "x w", "y", CONV)], ("N", 4, 6, 6), ["y"], [("w", normal(4, 4, 3, 3))])
    spliced = splice(model, [Replacement("y", operator("v0 = input 4x6x6\nv1 = identity(v0)"), ())])
    x = normal(2, 4, 6, 6)
    np.testing.assert_array_equal(in_onnx_runtime(spliced.proto, x)[0], x)


def test_a_layer_replaced_by_zero_takes_its_addition_with_it():
    model = residual_model()
    spliced = splice(model, [Replacement("c2", operator("v0 = input 4x6x6\nv1 = zero(v0, shape=4x6x6)"), ())])
    assert op_types(spliced) == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]


def test_a_replacement_computes_what_its_operator_means():
    text = """\
v0 = input 4x6x6
v1 = weight 2x4x1x1
v2 = cross_correlation(v0, v1, channels=2, dilation=1x1, groups=1, kernel=1x1, padding=0x0x0x0, stride=1x1)
v3 = concat(v2, v2)
v4 = weight 4
v5 = channel_scale(v3, v4)
v6 = tanh(v5)"""
    model = residual_model()
    replacement = Replacement("r1", operator(text), (normal(2, 4, 1, 1), normal(4)))
    inner = onnx.ModelProto()
    inner.CopyFrom(splice(model, [replacement]).proto)
    inner.graph.output.extend(onnx.helper.make_value_info(name, onnx.TypeProto()) for name in ("r0", "r1"))
    _, r0, r1 = in_onnx_runtime(onnx.shape_inference.infer_shapes(inner), normal(2, 3, 6, 6))
    assert_close(r1, evaluate(replacement.operator, [r0], replacement.weights))


def test_a_site_can_be_replaced_again_and_names_stay_apart():
    text = """\
v0 = input 4x6x6
v1 = weight 4x1x3x3
v2 = cross_correlation(v0, v1, channels=4, dilation=1x1, groups=4, kernel=3x3, padding=1x1x1x1, stride=1x1)
v3 = weight 4x4x1x1
v4 = cross_correlation(v2, v3, channels=4, dilation=1x1, groups=1, kernel=1x1, padding=0x0x0x0, stride=1x1)
v5 = relu(v4)"""
    model = residual_model()
    separable = Replacement("r1", operator(text), (normal(4, 1, 3, 3), normal(4, 4, 1, 1)))
    once = splice(model, [separable])
    assert site(once, "r1").kind == "pointwise"
    twice = splice(once, [own(site(once, "r1"))])
    names = [name for node in twice.proto.graph.node for name in node.output]
    assert len(set(names)) == len(names)
    x = normal(2, 3, 6, 6)
    assert_close(in_onnx_runtime(twice.proto, x)[0], in_onnx_runtime(once.proto, x)[0])


def test_overlapping_unknown_and_ill_shaped_replacements_are_refused():
    model = residual_model()
    with pytest.raises(ValueError, match="r2 and r1 overlap"):
        splice(model, [own(site(model, "r1")), own(site(model, "r2"))])
    with pytest.raises(ValueError, match="no such site: nowhere"):
        splice(model, [Replacement("nowhere", site(model, "r1").operator, ())])
    with pytest.raises(ValueError, match=r"r1 maps \(4, 6, 6\) to \(4, 6, 6\), its replacement"):
        splice(model, [Replacement("r1", operator("v0 = input 4x6x6\nv1 = flatten(v0)"), ())])


def test_the_order_in_which_replacements_are_given_means_nothing():
    model = residual_model()
    given = [own(site(model, name)) for name in ("r0", "r1", "y")]
    assert splice(model, given).proto == splice(model, given[::-1]).proto
