"""Random operators: shapes, canonical form, text form, torch and ONNX all agree with the numpy meaning."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
import torch
from compiling import lowered, outputs_of
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gos_adapt.errors import Rejection
from gos_adapt.instructions import INSTRUCTIONS
from gos_adapt.instructions.base import Kind
from gos_adapt.instructions.rules import MAX_ELEMENTS
from gos_adapt.operators.canonical import canonicalise
from gos_adapt.operators.equation import equation
from gos_adapt.operators.evaluate import evaluate, fold
from gos_adapt.operators.graph import (
    INPUT,
    LEAVES,
    MAX_EDGES,
    MAX_NODES,
    WEIGHT,
    Node,
    OperatorGraph,
    infer_node,
    infer_types,
    typed,
)
from gos_adapt.operators.onnx_form import to_onnx
from gos_adapt.operators.seeds import seeds
from gos_adapt.operators.text import parse
from gos_adapt.operators.torch_form import TorchOperator
from tvm_passes.schedules import Cpu

reproducibly = settings(
    derandomize=True,
    deadline=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
INPUT_SHAPES = ((4, 6, 6), (8, 4, 5), (2, 3, 3), (8,), (3, 8))
MAX_VALUES = 2000
NAMES = sorted(name for name, row in INSTRUCTIONS.items() if row.result is Kind.FEATURE)
OFTEN = ["cross_correlation"] * 4 + ["matrix_product"] * 6 + ["channel_slice", "channel_shuffle", "concat", "tile"]
OFTEN += ["scale", "channel_scale", "outer_product", "matrix_vector_product"] * 2
RANKS = {"outer_product": (1, 1), "matrix_vector_product": (2, 1), "matrix_product": (1, None)}
"""Of features, where most would not fit."""


@st.composite
def operators(draw):
    """Grow an operator node by node; what does not type-check is not added."""
    nodes = [Node(INPUT, shape=draw(st.sampled_from(INPUT_SHAPES))) for _ in range(draw(st.sampled_from((1, 1, 2))))]
    for _ in range(draw(st.integers(1, 12))):
        grown = _with_instruction(draw, nodes, draw(st.sampled_from(NAMES + OFTEN)))
        types = infer_types(tuple(grown))
        edges = sum(len(node.args) for node in grown) + 1
        if not isinstance(types, Rejection) and len(grown) <= MAX_NODES and edges <= MAX_EDGES:
            nodes = grown
    graph = typed(tuple(nodes))
    assume(isinstance(graph, OperatorGraph) and graph.nodes[-1].op not in LEAVES)
    return graph


def _with_instruction(draw, nodes, name):
    instruction, types = INSTRUCTIONS[name], infer_types(tuple(nodes))
    features = [i for i, t in enumerate(types) if t.kind is Kind.FEATURE]
    args = [
        draw(st.sampled_from([i for i in features if rank in (None, len(types[i].shape))][-4:] or features))
        for kind, rank in zip(instruction.arguments, RANKS.get(name, (None, None)), strict=False)
        if kind is Kind.FEATURE
    ]
    if not args:
        return nodes
    shape = types[args[0]].shape
    hyper = {key: draw(st.sampled_from(values)) for key, values in instruction.hyperparameters.items()}
    if name == "cross_correlation":  # most random settings do not fit: draw what fits often
        hyper |= {"channels": draw(st.sampled_from((4, 8))), "groups": draw(st.sampled_from((1, 2, 4)))}
        hyper |= {"kernel": draw(st.sampled_from(((1, 1), (3, 3), (2, 1)))), "padding": (1, 1, 1, 1)}
    if name == "channel_slice":
        hyper = {"start": draw(st.sampled_from((0, 1))), "stop": max(2, shape[0] // 2)}
    if name == "matrix_product":
        hyper["channels"] = draw(st.sampled_from((3, 8)))
    if name in ("zero", "reshape"):
        hyper["shape"] = draw(st.sampled_from([t.shape for t in types if t.kind is Kind.FEATURE] + [(shape[-1], 2)]))
    grown = list(nodes)
    for wanted in instruction.weight_shapes(tuple(types[a].shape for a in args), hyper):
        alike = [i for i, node in enumerate(grown) if node.op == WEIGHT and node.shape == wanted]
        if alike and draw(st.booleans()):
            args.append(alike[0])
        elif draw(st.booleans()):
            made = computed_weights(wanted)
            by = draw(st.sampled_from(sorted({weight[0] for weight in made})))
            args.append(_grow(grown, draw(st.sampled_from([weight for weight in made if weight[0] == by]))))
        else:
            args.append(_grow(grown, wanted))
    if any(np.prod(node.shape) > MAX_VALUES or min(node.shape) < 1 for node in grown if node.op == WEIGHT):
        return nodes
    added = Node(name, tuple(args), tuple(sorted(hyper.items())))
    inferred = infer_node(added, infer_types((*grown, Node("identity", (0,)))))
    fits = not isinstance(inferred, Rejection) and np.prod(inferred.shape) <= MAX_VALUES
    return [*grown, added] if fits else nodes


def _grow(nodes, weight):
    """Append the nodes of a weight, a leaf's shape or (name, settings, *weights); return the index of the last."""
    if all(isinstance(size, int) for size in weight):
        nodes.append(Node(WEIGHT, shape=weight))
    else:
        name, settings, *arguments = weight
        nodes.append(Node(name, tuple(_grow(nodes, a) for a in arguments), tuple(sorted(settings.items()))))
    return len(nodes) - 1


def computed_weights(shape):
    """Weights of a shape made by every instruction on weights alone that can make it, from leaves."""
    size = int(np.prod(shape))
    pair = (shape, shape)
    numbers = [(name, {}, (2, 2)) for name in ("determinant", "trace", "rank", "weight_frobenius_norm")]
    numbers += [("weight_dot_product", {}, (3,), (3,)), ("weight_vector_norm", {"order": 1}, (3,))]
    numbers += [("matrix_norm", {"order": 2}, (2, 3)), (1,)]
    weights = [("weight_add", {}, *pair), ("weight_subtract", {}, *pair), ("weight_hadamard", {}, *pair)]
    weights += [("weight_scale", {}, shape, number) for number in numbers]
    weights += [("weight_reshape", {"shape": shape}, (size,))]
    weights += [("weight_transpose", {"axes": tuple(range(len(shape)))[::-1]}, shape[::-1])]
    if len(shape) == 1:
        weights.append(("weight_matrix_vector_product", {}, (size, 2), (2,)))
        weights += [(name, {"factor": 1, "rank": size}, (size, size)) for name in ("svd", "eigen")]
    if len(shape) == 2:
        rows, columns = shape
        weights.append(("weight_product", {}, (rows, 2), (2, columns)))
        weights.append(("weight_outer_product", {}, (rows,), (columns,)))
        weights += [("kronecker_product", {}, (rows, 1), (1, columns)), ("pseudo_inverse", {}, (columns, rows))]
        tall, rank = rows > columns, min(shape)
        weights += [("zero_matrix", {"shape": shape}), ("qr", {"factor": 0 if tall else 1}, shape)]
        weights.append(("svd", {"factor": 0 if tall else 2, "rank": rank}, shape))
    if len(shape) == 2 and rows == columns:
        weights += [("inverse", {"ridge": 0.01}, shape), ("cholesky", {"ridge": 0.01}, (rows, 3))]
        weights += [("identity_matrix", {"size": rows}), ("diagonal_matrix", {}, (rows,))]
        weights.append(("eigen", {"factor": 0, "rank": rows}, shape))
    return weights


def test_random_operators_hold_every_instruction():
    computed = {name for shape in ((1,), (2,), (2, 3), (3, 3), (4, 2, 3, 3)) for name in _names(shape)}
    assert computed | set(NAMES) == set(INSTRUCTIONS)


def _names(shape):
    nodes = []
    for weight in computed_weights(shape):
        _grow(nodes, weight)
    return {node.op for node in nodes if node.op != WEIGHT}


def arrays(graph, seed=0):
    rng = np.random.default_rng(seed)
    inputs = [rng.normal(size=(2, *graph.nodes[i].shape)).astype(np.float32) for i in graph.inputs]
    weights = [
        (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32) for shape in graph.weight_shapes
    ]
    return inputs, weights


def meaning(graph, inputs, weights):
    """Evaluate where float32 says something: products of products may leave its range."""
    with np.errstate(over="ignore", invalid="ignore"):
        result = evaluate(graph, inputs, weights)
    assume(bool(np.all(np.abs(result) < 1e4)))
    return result


def exported(graph):
    """The ONNX form with random weights, random inputs for it, and what it means of them."""
    inputs, weights = arrays(graph)
    return to_onnx(graph, weights), inputs, meaning(graph, inputs, weights)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4 * max(1.0, float(np.abs(expected).max())))


@reproducibly
@given(operators())
def test_the_shape_rule_is_the_shape_numpy_gives(graph):
    inputs, weights = arrays(graph)
    assert meaning(graph, inputs, weights).shape == (2, *graph.output_shape)


@reproducibly
@given(operators())
def test_the_canonical_form_keeps_meaning_inputs_and_output(graph):
    canonical = canonicalise(graph)
    inputs, weights = arrays(graph)
    assert [canonical.graph.nodes[i].shape for i in canonical.graph.inputs] == [
        n.shape for n in graph.nodes if n.op == INPUT
    ]
    assert_close(evaluate(canonical.graph, inputs, canonical.weights(weights)), meaning(graph, inputs, weights))


@reproducibly
@given(operators())
def test_the_canonical_form_is_canonical_and_not_larger(graph):
    canonical = canonicalise(graph)
    again = canonicalise(canonical.graph)
    assert again.graph == canonical.graph
    _, weights = arrays(graph)
    for new, old in zip(again.weights(canonical.weights(weights)), canonical.weights(weights), strict=True):
        np.testing.assert_array_equal(new, old)
    assert len(canonical.graph.nodes) <= len(graph.nodes)
    assert canonical.graph.edge_count <= graph.edge_count
    assert canonical.graph.macs <= graph.macs


@reproducibly
@given(operators(), st.randoms(use_true_random=False))
def test_isomorphic_operators_have_one_canonical_form(graph, random):
    assert canonicalise(_shuffled(graph, random)).graph == canonicalise(graph).graph


def _shuffled(graph, random):
    """The same operator in another topological order, commutative arguments swapped at random, inputs in order."""
    order, ready = list(graph.inputs), list(graph.weights)
    random.shuffle(ready)
    order += ready
    waiting = [i for i in range(len(graph.nodes)) if i not in order]
    while waiting:
        possible = [i for i in waiting if set(graph.nodes[i].args) <= set(order)]
        possible = [i for i in possible if i != len(graph.nodes) - 1] or possible
        order.append(random.choice(possible))
        waiting.remove(order[-1])
    position = {old: i for i, old in enumerate(order)}
    nodes = []
    for old in order:
        node = graph.nodes[old]
        args = [position[a] for a in node.args]
        if node.op not in LEAVES and INSTRUCTIONS[node.op].commutative and random.random() < 0.5:
            args.reverse()
        nodes.append(Node(node.op, tuple(args), node.hyper, node.shape))
    return OperatorGraph(tuple(nodes))


@reproducibly
@given(operators())
def test_text_round_trips(graph):
    assert parse(graph.text) == graph


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.text(max_size=200) | st.text(alphabet="v0123456789x=(), \ninputweghrlad.-", max_size=200))
def test_parse_never_raises(text):
    parsed = parse(text)
    assert isinstance(parsed, Rejection) or parsed.text == text


@reproducibly
@given(operators(), st.data())
def test_parse_survives_a_damaged_text(graph, data):
    at = data.draw(st.integers(0, len(graph.text) - 1))
    damaged = graph.text[:at] + data.draw(st.text(alphabet="v019x=(),-. \n", max_size=3)) + graph.text[at + 1 :]
    parsed = parse(damaged)
    assert isinstance(parsed, Rejection) or parsed.text == damaged


@settings(reproducibly, max_examples=60)
@given(operators())
def test_the_onnx_form_computes_the_meaning_in_onnx_runtime(graph):
    model, inputs, expected = exported(graph)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    known = {value.name for value in session.get_inputs()}
    feeds = {f"x{k}": array for k, array in enumerate(inputs) if f"x{k}" in known}
    assert_close(session.run(["y"], feeds)[0], expected)


@settings(reproducibly, max_examples=12)
@given(operators())
def test_the_onnx_form_computes_the_meaning_after_the_whole_compiler(graph):
    model, inputs, expected = exported(graph)
    read = {name for node in model.graph.node for name in node.input}
    assume(any(value.name in read for value in model.graph.input))  # of constants nothing is left to compile
    feeds = [inputs[int(value.name.removeprefix("x"))] for value in model.graph.input]
    (actual,) = outputs_of(lowered(model, Cpu(lanes=8, registers=16, threads=2), batch=2), *feeds)
    assert_close(actual, expected)


@reproducibly
@given(operators())
def test_the_torch_form_computes_the_meaning(graph):
    inputs, weights = arrays(graph)
    expected = meaning(graph, inputs, weights)
    with torch.no_grad():
        assert_close(TorchOperator(graph, weights)(*map(torch.from_numpy, inputs)).numpy(), expected)


@reproducibly
@given(operators())
def test_folding_keeps_the_meaning_and_leaves_no_instruction_on_weights_alone(graph):
    inputs, weights = arrays(graph)
    folded, constants = fold(graph, weights)
    assert_close(evaluate(folded, inputs, constants), meaning(graph, inputs, weights))
    assert all(folded.types[i].kind is Kind.FEATURE for i, n in enumerate(folded.nodes) if n.op not in LEAVES)


@settings(reproducibly, max_examples=40)
@given(operators())
def test_every_operator_has_an_equation(graph):
    written = equation(graph)
    assert written.text.splitlines()[-1].startswith("y = ")
    assert written.mathml.count("<math ") == 1


@settings(reproducibly, max_examples=40)
@given(operators())
def test_seeds_are_canonical_legal_and_of_the_same_shapes(graph):
    _, weights = arrays(graph)
    for seed in seeds(graph):
        assert canonicalise(seed.graph).graph == seed.graph == typed(seed.graph.nodes)
        assert seed.graph.output_shape == graph.output_shape
        derived = seed.initial(weights, np.random.default_rng(0))
        assert tuple(array.shape for array in derived) == seed.graph.weight_shapes


hyper_values = (
    st.text(max_size=9)
    | st.sampled_from(("relu", "maximum"))
    | st.integers()
    | st.floats()
    | st.lists(st.integers(-3, 2**40), max_size=5).map(tuple)
)


@settings(derandomize=True, deadline=None, max_examples=400)
@given(
    st.sampled_from(sorted(INSTRUCTIONS)),
    st.lists(st.lists(st.integers(-2, 2**40), max_size=5).map(tuple), max_size=3).map(tuple),
    st.data(),
)
def test_shape_rules_are_total(name, shapes, data):
    keys = {*INSTRUCTIONS[name].hyperparameters, *data.draw(st.sets(st.sampled_from(("shape", "size", "extra"))))}
    shape = INSTRUCTIONS[name].infer(shapes, {key: data.draw(hyper_values) for key in sorted(keys)})
    assert isinstance(shape, Rejection) or min(shape) > 0


sides = st.integers(1, 9) | st.sampled_from((2**14, 2**28))


@pytest.mark.parametrize("name", sorted(INSTRUCTIONS))
@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.data())
def test_shape_rules_are_total_where_settings_are_legal(name, data):
    row = INSTRUCTIONS[name]
    hyper = {key: data.draw(st.sampled_from(values)) for key, values in row.hyperparameters.items()}
    if "padding" in hyper:
        hyper["padding"] = tuple(data.draw(st.lists(st.integers(0, 2) | st.just(2**30), min_size=4, max_size=4)))
    shapes = tuple(
        tuple(data.draw(st.lists(sides, min_size=1, max_size=4)))
        for kind in row.arguments
        if kind is Kind.FEATURE or Kind.FEATURE not in row.arguments
    )
    if Kind.FEATURE in row.arguments:
        shapes += row.weight_shapes(shapes, hyper)
    shape = row.infer(shapes, hyper)
    assert isinstance(shape, Rejection) or 0 < math.prod(shape) <= MAX_ELEMENTS
