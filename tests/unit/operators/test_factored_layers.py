"""Layers whose weight is computed from factors: one operator, folded, the same in numpy, ONNX Runtime and TVM."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from gos_adapt.operators.builder import Builder
from gos_adapt.operators.equation import equation
from gos_adapt.operators.evaluate import evaluate, fold
from gos_adapt.operators.onnx_form import to_onnx
from gos_adapt.operators.text import parse
from gos_adapt.operators.torch_form import TorchOperator
from gos_adapt.report import facts
from gos_adapt.report.operator_svg import operator_svg
from tvm_passes.compat import relax, tvm
from tvm_passes.lower_instructions import emit

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def convolved(x, w):
    return torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(w), padding=1).numpy()


def low_rank_convolution():
    """Filters (6, 4, 3, 3) as a matrix (6, 36), of which two singular values are kept."""
    b = Builder()
    x, w = b.input(4, 5, 5), b.weight(6, 4, 3, 3)
    matrix = b.apply("weight_reshape", w, shape=(6, 36))
    u, s, vt = (b.apply("svd", matrix, factor=factor, rank=2) for factor in range(3))
    product = b.apply("weight_product", b.apply("weight_product", u, b.apply("diagonal_matrix", s)), vt)
    filters = b.apply("weight_reshape", product, shape=(6, 4, 3, 3))
    settings = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
    b.apply("cross_correlation", x, filters, kernel=(3, 3), channels=6, **settings)

    def reference(x, w):
        u, s, vt = np.linalg.svd(w.reshape(6, 36), full_matrices=False)
        return convolved(x, ((u[:, :2] * s[:2]) @ vt[:2]).reshape(w.shape))

    return b, reference


def convolution_of_two_matrices():
    """Filters (6, 4, 3, 1) as columns times rows: the matrix's axes are put where a convolution has them."""
    b = Builder()
    x, columns, rows = b.input(4, 5, 5), b.weight(4 * 3, 2), b.weight(2, 6)
    product = b.apply("weight_reshape", b.apply("weight_product", columns, rows), shape=(4, 3, 1, 6))
    filters = b.apply("weight_transpose", product, axes=(3, 0, 1, 2))
    settings = {"stride": (1, 1), "padding": (1, 0, 1, 0), "dilation": (1, 1), "groups": 1}
    b.apply("cross_correlation", x, filters, kernel=(3, 1), channels=6, **settings)

    def reference(x, columns, rows):
        filters = np.einsum("ckr,ro->ock", columns.reshape(4, 3, 2), rows)[..., None]
        wide = np.zeros((6, 4, 3, 3), np.float32)
        wide[..., 1:2] = filters
        return convolved(x, wide)

    return b, reference


def kronecker_layer():
    b = Builder()
    x = b.input(12)
    b.apply("matrix_product", x, b.apply("kronecker_product", b.weight(3, 2), b.weight(4, 5)), channels=10)
    return b, lambda x, one, other: np.einsum("nij,ik,jl->nkl", x.reshape(-1, 3, 4), one, other).reshape(-1, 10)


def orthogonal_layer():
    """A rotation and one learned length: the norm of the result is that of the input, times the scale."""
    b = Builder()
    x = b.input(6)
    b.apply("scale", b.apply("matrix_product", x, b.apply("qr", b.weight(6, 6), factor=0), channels=6))

    def reference(x, w, scale):
        q, r = np.linalg.qr(w)
        return x @ (q * np.sign(np.diag(r))) * scale

    return b, reference


def spectrally_normalised_layer():
    """A matrix over its largest singular value: the inverse of a number is that of a matrix of one element."""
    b = Builder()
    x, w = b.input(6), b.weight(6, 4)
    norm = b.apply("weight_reshape", b.apply("matrix_norm", w, order=2), shape=(1, 1))
    reciprocal = b.apply("weight_reshape", b.apply("inverse", norm, ridge=1e-8), shape=(1,))
    b.apply("matrix_product", x, b.apply("weight_scale", w, reciprocal), channels=4)
    return b, lambda x, w: x @ (w / np.linalg.norm(w, 2))


def residual_weight():
    """Identity plus an outer product, minus nothing: constants without arguments."""
    b = Builder()
    x, a, c = b.input(6), b.weight(6), b.weight(6)
    nothing = b.apply("zero_matrix", shape=(6, 6))
    weight = b.apply("weight_add", b.apply("identity_matrix", size=6), b.apply("weight_outer_product", a, c))
    b.apply("matrix_product", x, b.apply("weight_subtract", weight, nothing), channels=6)
    return b, lambda x, a, c: x + (x @ a)[:, None] * c


LAYERS = (
    low_rank_convolution,
    convolution_of_two_matrices,
    kronecker_layer,
    orthogonal_layer,
    spectrally_normalised_layer,
    residual_weight,
)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_factored_layer_is_its_reference_in_every_form(layer):
    b, reference = layer()
    graph = b.graph()
    assert parse(graph.text) == graph
    x = normal(2, *graph.nodes[graph.inputs[0]].shape)
    weights = [normal(*shape) for shape in graph.weight_shapes]
    expected = reference(x, *weights)

    folded, constants = fold(graph, weights)
    assert {node.op for node in folded.nodes} <= {"input", "weight", "matrix_product", "cross_correlation", "scale"}
    forms = {
        "numpy": evaluate(graph, [x], weights),
        "folded": evaluate(folded, [x], constants),
        "torch": TorchOperator(graph, weights)(torch.from_numpy(x)).detach().numpy(),
        "ONNX Runtime": _in_onnx_runtime(graph, weights, x),
        "TVM": _in_tvm(graph, weights, x),
    }
    for form, actual in forms.items():
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4, err_msg=form)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_factors_of_a_layer_learn(layer):
    graph = layer()[0].graph()
    weights = [normal(*shape) for shape in graph.weight_shapes]
    operator = TorchOperator(graph, weights)
    optimizer = torch.optim.Adam(operator.parameters(), lr=0.01)
    x = torch.from_numpy(normal(16, *graph.nodes[graph.inputs[0]].shape))
    with torch.no_grad():
        target = TorchOperator(graph, [w + 0.3 * normal(*w.shape) for w in weights])(x)
    losses = []
    for _ in range(30):
        losses.append((operator(x) - target).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_what_a_layer_costs_is_what_is_left_of_it():
    graph = kronecker_layer()[0].graph()
    assert graph.parameters == 3 * 2 + 4 * 5
    assert graph.macs == 12 * 10


def test_the_equation_of_a_factored_layer_names_its_factors():
    written = equation(kronecker_layer()[0].graph())
    assert written.text == "y = x · (W_1 ⊗ W_2)"
    assert r"x \cdot \left(W_{1} \otimes W_{2}\right)" in written.latex
    assert equation(orthogonal_layer()[0].graph()).text == "y = b*(x · (qr_{Q}(W)))"
    assert "I_6" in equation(residual_weight()[0].graph()).text


def test_the_drawing_of_a_factored_layer_has_a_box_for_a_constant_and_no_arrow_to_it():
    graph = residual_weight()[0].graph()
    drawing = facts.drawing(graph.text)
    constants = [i for i, box in enumerate(drawing.boxes) if box.name in ("identity matrix", "zero matrix")]
    assert len(constants) == 2
    assert not any(target in constants for _, target in drawing.arrows)
    assert operator_svg(drawing, "layer").count('class="node') == len(graph.nodes)


def _in_onnx_runtime(graph, weights, x):
    model = to_onnx(graph, weights)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x0": x})[0]


def _in_tvm(graph, weights, x):
    builder = relax.BlockBuilder()
    variable = relax.Var("x", relax.TensorType(x.shape, "float32"))
    with builder.function("main", [variable]):
        with builder.dataflow():
            result = builder.emit_output(emit(builder, graph, weights, [variable]))
        builder.emit_func_output(result)
    machine = relax.VirtualMachine(tvm.compile(builder.get(), "llvm"), tvm.cpu())
    return machine["main"](tvm.runtime.tensor(x)).numpy()
