"""Every instruction computed at inference, by being listed, means in TVM what it means in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from compiling import lowered, outputs_of
from test_instructions import CASES, scaled_by

from gos_adapt.instructions import INSTRUCTIONS
from gos_adapt.instructions.base import Kind
from gos_adapt.operators.builder import Builder
from gos_adapt.operators.evaluate import evaluate
from gos_adapt.operators.graph import OperatorGraph
from gos_adapt.operators.onnx_form import to_onnx
from tvm_passes.compat import relax, tirx, tvm
from tvm_passes.lower_instructions import LOWERINGS, emit
from tvm_passes.schedules import Cpu


def test_every_instruction_whose_result_is_a_feature_has_a_relax_form_and_nothing_else_has():
    assert set(LOWERINGS) == {name for name, row in INSTRUCTIONS.items() if row.result is Kind.FEATURE}


@pytest.mark.parametrize("name", [name for name in CASES if name in LOWERINGS])
def test_tvm_and_numpy_agree_for_a_fixed_and_a_symbolic_batch(name):
    builder = relax.BlockBuilder()
    expected = {}
    for i, (shapes, hyper) in enumerate(CASES[name]):
        arguments = _arguments(name, shapes)
        for batch in (2, tirx.Var("n", "int64")):
            function = f"case{i}_{batch}"
            _add_function(
                builder, function, name, [relax.TensorType(s, "float32") for s in _shapes(name, shapes, batch)], hyper
            )
            expected[function] = (arguments, INSTRUCTIONS[name].numpy(*arguments, **hyper))
    machine = _compiled(builder.get())
    for function, (arguments, meaning) in expected.items():
        actual = machine[function](*map(tvm.runtime.tensor, arguments)).numpy()
        np.testing.assert_allclose(actual, meaning, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if name not in LOWERINGS])
def test_what_gives_a_weight_is_a_constant_in_tvm(name):
    builder = relax.BlockBuilder()
    expected = {}
    for i, (shapes, hyper) in enumerate(CASES[name]):
        graph, x, weights = scaled_by(name, shapes, hyper)
        variable = relax.Var("x", relax.TensorType(x.shape, "float32"))
        _add_operator(builder, f"case{i}", graph, weights, variable)
        expected[f"case{i}"] = (x, evaluate(graph, [x], weights))
    machine = _compiled(builder.get())
    for function, (x, meaning) in expected.items():
        np.testing.assert_allclose(machine[function](tvm.runtime.tensor(x)).numpy(), meaning, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES if name in LOWERINGS])
def test_the_onnx_form_means_the_same_after_the_whole_compiler(name):
    for shapes, hyper in CASES[name][:4]:  # maps come from a convolution, so that they are laid out in blocks
        graph = _after_convolutions(name, shapes, hyper)
        if graph.nodes[-1].op == "zero":
            continue  # nothing is left to compile
        rng = np.random.default_rng(0)
        inputs = [rng.normal(0, 1, (1, *graph.nodes[i].shape)).astype(np.float32) for i in graph.inputs]
        weights = [rng.normal(0, 1, shape).astype(np.float32) for shape in graph.weight_shapes]
        module = lowered(to_onnx(graph, weights), Cpu(lanes=8, registers=16, threads=2))
        (actual,) = outputs_of(module, *inputs)
        np.testing.assert_allclose(actual, evaluate(graph, inputs, weights), rtol=1e-4, atol=1e-5)


def _after_convolutions(name, shapes, hyper):
    b = Builder()
    kinds = INSTRUCTIONS[name].arguments
    features = [b.input(*shape) for kind, shape in zip(kinds, shapes, strict=True) if kind is Kind.FEATURE]
    maps = [b.convolution(x, b.shape(x)[0], (1, 1)) if len(b.shape(x)) == 3 else x for x in features]
    b.apply(name, *maps, **hyper)
    graph = b.graph()
    assert isinstance(graph, OperatorGraph), graph
    return graph


def test_what_depends_on_weights_alone_is_computed_before_compilation():
    b = Builder()
    x = b.input(6)
    product = b.apply("weight_product", b.weight(6, 2), b.weight(2, 5))
    b.apply("relu", b.apply("matrix_product", x, product, channels=5))
    graph = b.graph()
    weights = [np.full(shape, 0.5, np.float32) for shape in graph.weight_shapes]
    builder = relax.BlockBuilder()
    variable = relax.Var("x", relax.TensorType((3, 6), "float32"))
    _add_operator(builder, "main", graph, weights, variable)
    module = builder.get()
    (block,) = module["main"].body.blocks
    assert [binding.value.op.name for binding in block.bindings] == ["relax.matmul", "relax.nn.relu"]
    sample = np.ones((3, 6), np.float32)
    actual = _compiled(module)["main"](tvm.runtime.tensor(sample)).numpy()
    np.testing.assert_allclose(actual, evaluate(graph, [sample], weights), rtol=1e-6)


def _add_operator(builder, function, graph, weights, variable):
    with builder.function(function, [variable]):
        with builder.dataflow():
            result = builder.emit_output(emit(builder, graph, weights, [variable]))
        builder.emit_func_output(result)


def _add_function(builder, function, name, types, hyper):
    variables = [relax.Var(f"x{k}", type_) for k, type_ in enumerate(types)]
    with builder.function(function, variables):
        with builder.dataflow():
            result = builder.emit_output(LOWERINGS[name](tuple(variables), hyper))
        builder.emit_func_output(result)


def _shapes(name, shapes, batch):
    kinds = INSTRUCTIONS[name].arguments
    return [(batch, *shape) if kind is Kind.FEATURE else shape for kind, shape in zip(kinds, shapes, strict=True)]


def _arguments(name, shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(0, 3, shape).astype(np.float32) for shape in _shapes(name, shapes, 2)]


def _compiled(module):
    return relax.VirtualMachine(tvm.compile(module, "llvm"), tvm.cpu())
