"""An operator as ONNX: nodes and initialisers inside a larger graph, or a model of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gos_adapt.instructions import INSTRUCTIONS
from gos_adapt.instructions.schedule_hints import to_remark
from gos_adapt.operators.evaluate import fold
from gos_adapt.operators.graph import LEAVES, OperatorGraph, convolution_biases
from gos_adapt.operators.hints import without_hints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gos_adapt.instructions.base import OnnxEmitter

    Array = np.ndarray[Any, Any]

OPSET = 17
"""Of `to_onnx`; what `emit` writes is valid from here on (checked to 20)."""


class GraphEmitter:
    """Collects ONNX nodes and initialisers; every name starts with `prefix`, which the caller keeps unique."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        """Append a node with one output; return that output's name, which is also the node's."""
        name = f"{self.prefix}{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def constant(self, array: Array) -> str:
        """Add an initialiser; return its name."""
        name = f"{self.prefix}constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name


def emit(graph: OperatorGraph, weights: Sequence[Array], emitter: OnnxEmitter, inputs: Sequence[str]) -> str:
    """Write the operator into `emitter`, weights as initialisers, what depends on weights alone computed already.

    A schedule hint becomes a remark in the documentation of the node that computes its argument.

    Args:
        graph: Any operator.
        weights: In node order.
        emitter: Takes the nodes and initialisers.
        inputs: Names of the tensors for the input leaves, in node order.

    Returns:
        Name of the result.
    """
    folded, constants = fold(graph, weights)
    folded, hints = without_hints(folded)
    names = dict(zip(folded.inputs, inputs, strict=True))
    names |= {i: emitter.constant(w.astype(np.float32)) for i, w in zip(folded.weights, constants, strict=True)}
    biases = convolution_biases(folded)
    for i, node in enumerate(folded.nodes):
        if i in biases.values():
            names[i] = names[node.args[0]]
        elif node.op not in LEAVES:
            arguments = [names[a] for a in node.args]
            if i in biases:
                arguments.append(names[folded.nodes[biases[i]].args[1]])
            shapes = tuple(folded.types[a].shape for a in node.args)
            form = INSTRUCTIONS[node.op].onnx
            assert form is not None, "what gives a weight is folded"
            names[i] = form(emitter, tuple(arguments), shapes, dict(node.hyper))
            if i in hints:
                emitter.nodes[-1].doc_string = to_remark(hints[i])
    return names[len(folded.nodes) - 1]


def to_onnx(graph: OperatorGraph, weights: Sequence[Array], *, opset: int = OPSET) -> onnx.ModelProto:
    """Return the operator as a checked model: inputs ``x0``, ``x1`` ..., output ``y``, dynamic batch ``N``."""
    emitter = GraphEmitter()
    inputs = [
        helper.make_tensor_value_info(f"x{k}", TensorProto.FLOAT, ["N", *graph.nodes[i].shape])
        for k, i in enumerate(graph.inputs)
    ]
    result = emit(graph, weights, emitter, [value.name for value in inputs])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *graph.output_shape])
    emitter.nodes.append(helper.make_node("Identity", [result], ["y"], name="y"))
    model = helper.make_model(
        helper.make_graph(emitter.nodes, graph.key, inputs, [output], emitter.initializers),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8 if opset < 19 else 9,
    )
    onnx.checker.check_model(model, full_check=True)
    return model
