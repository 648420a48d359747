"""Where a site is in the model as given, for a compiler whose importer forgets tensor names.

Sites are found in the canonical graph, but others compile the original, with its separate batch normalisations, pads
and identities. Canonicalisation keeps the names of the tensors that survive it, so a site is everything in the original
between the tensors of its input's and output's name; its nodes are known again by their weights.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
from onnx import numpy_helper

from gos_adapt.errors import Rejection
from gos_adapt.model.leading_to import leading_to

if TYPE_CHECKING:
    import onnx

    from gos_adapt.model.model import Array, Model, Site

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class AnchoredNode:
    """One node of the original.

    Attributes:
        op_type: ONNX op type.
        ordinal: How many nodes of this op type precede it in the original's node order.
        weight: `weight_digest` of its constant operand if it is one of `WEIGHTED` and has one.
    """

    op_type: str
    ordinal: int
    weight: str | None


@dataclass(frozen=True)
class Anchor:
    """A site in the original model.

    Attributes:
        nodes: Every node of the original that depends on the site's input and leads to its output, in the original's
            order; the last one computes the site's output.
        entries: Which operands are the site's input: (index into `nodes`, position among that node's inputs).
    """

    nodes: tuple[AnchoredNode, ...]
    entries: tuple[tuple[int, int], ...]


def weight_digest(weight: Array) -> str:
    """Identify a weight by its float32 values in C order, whatever the constant that holds them is called."""
    return sha256(np.ascontiguousarray(weight, np.float32).tobytes()).hexdigest()


def find_anchor(model: Model, site: Site) -> Anchor | Rejection:
    """Find a site of the canonical graph in `model.original`, or say why it is not there."""
    graph = model.original.graph
    constants = _constants(graph)
    region = _between(graph, site.input, site.output)
    if not region or site.output not in region[-1].output:
        return Rejection(f"the original model does not compute {site.output} from {site.input}")
    seen: Counter[str] = Counter()
    anchored = {}
    for node in graph.node:
        anchored[node.output[0]] = AnchoredNode(node.op_type, seen[node.op_type], _weight(node, constants))
        seen[node.op_type] += 1
    entries = tuple(
        (i, position) for i, node in enumerate(region) for position, name in enumerate(node.input) if name == site.input
    )
    return Anchor(tuple(anchored[node.output[0]] for node in region), entries)


def _between(graph: onnx.GraphProto, source: str, result: str) -> list[onnx.NodeProto]:
    """The nodes that depend on `source` and lead to `result`, in the graph's (topological) order."""
    reached, after = {source}, []
    for node in graph.node:
        if not reached.isdisjoint(node.input):
            reached |= set(node.output)
            after.append(node)
    return leading_to(after, {result})


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    initializers = {initializer.name: initializer for initializer in graph.initializer}
    return initializers | {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }


def _weight(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> str | None:
    if node.op_type not in WEIGHTED:
        return None
    operands = [constants[name] for name in node.input[:2] if name in constants]
    return weight_digest(numpy_helper.to_array(operands[0])) if operands else None
