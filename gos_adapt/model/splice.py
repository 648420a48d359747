"""Put replacement operators into a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper, numpy_helper

from gos_adapt.model.leading_to import leading_to
from gos_adapt.model.sites import find_sites, overlaps
from gos_adapt.operators.onnx_form import emit

if TYPE_CHECKING:
    from gos_adapt.model.model import Array, Model, Replacement, Replacements, Site


def splice(model: Model, replacements: Replacements) -> Model:
    """Return a model whose canonical graph computes each replaced site by its replacement.

    A site's output tensor keeps its name, so sites elsewhere keep theirs; inner tensors and initialisers of the first
    splice at a site are named ``<site>#1/...``, of the next ``<site>#2/...``. What a replacement makes redundant goes:
    identities (their readers then read the tensor before, unless the model outputs it), additions of zero, a Relu of a
    Relu, nodes and initialisers that nothing reads. `Model.original` stays as it is.

    Raises:
        ValueError: for an unknown site, overlapping sites or a replacement of another shape (our bug, not the user's).
    """
    chosen = _pair(find_sites(model), replacements)
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    ends = {site.output: _Emitter.of(site, replacement, taken) for site, replacement in chosen}
    covered = {name for site, _ in chosen for name in site.nodes}
    nodes: list[onnx.NodeProto] = []
    for node in model.proto.graph.node:
        # Everything a site needs precedes its last node, and all its readers follow it.
        if node.output[0] in ends:
            nodes += ends[node.output[0]].nodes
        elif node.output[0] not in covered:
            nodes.append(node)
    constants = {name: value for emitter in ends.values() for name, value in emitter.constants.items()}
    nodes = _simplify(nodes, model.proto.graph)
    read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    initializers = [initializer for initializer in model.proto.graph.initializer if initializer.name in read]
    initializers += [numpy_helper.from_array(value, name) for name, value in constants.items() if name in read]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(inferred)
    return replace(model, proto=inferred)


def _pair(sites: tuple[Site, ...], replacements: Replacements) -> list[tuple[Site, Replacement]]:
    """Sites with their replacements, in model order: the same set makes the same graph, however it was given."""
    by_name = {site.name: site for site in sites}
    unknown = [replacement.site for replacement in replacements if replacement.site not in by_name]
    if unknown:
        raise ValueError(f"no such site: {', '.join(unknown)}")
    order = {name: number for number, name in enumerate(by_name)}
    ordered = sorted(replacements, key=lambda replacement: order[replacement.site])
    chosen = [(by_name[replacement.site], replacement) for replacement in ordered]
    for i, (site, replacement) in enumerate(chosen):
        shapes = (replacement.operator.types[replacement.operator.inputs[0]].shape, replacement.operator.output_shape)
        if shapes != (site.input_shape, site.output_shape):
            raise ValueError(f"{site.name} maps {site.input_shape} to {site.output_shape}, its replacement {shapes}")
        for other, _ in chosen[:i]:
            if overlaps(site, other):
                raise ValueError(f"{site.name} and {other.name} overlap")
    return chosen


@dataclass
class _Emitter:
    """Collects the ONNX form of one site's replacement (an `OnnxEmitter`)."""

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, site: Site, replacement: Replacement, taken: set[str]) -> _Emitter:
        """Emit a replacement between the site's input and output tensor, under a prefix no taken name has."""
        prefixes = (f"{site.name}#{splices}/" for splices in count(1))
        emitter = cls(next(prefix for prefix in prefixes if not any(name.startswith(prefix) for name in taken)))
        result = emit(replacement.operator, replacement.weights, emitter, [site.input])
        emitter._fuse_biases()
        if result == site.input:
            emitter.node("Identity", [result])
        emitter.nodes[-1].output[0] = site.output
        return emitter

    def node(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        """Append a node; one that only reshapes a constant is a constant."""
        if op_type == "Reshape" and set(inputs) <= self.constants.keys():
            return self.constant(self.constants[inputs[0]].reshape(self.constants[inputs[1]]))
        output = f"{self.prefix}{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], output, **attributes))
        return output

    def constant(self, array: Array) -> str:
        """Add an initialiser."""
        name = f"{self.prefix}{len(self.constants)}"
        self.constants[name] = array
        return name

    def _fuse_biases(self) -> None:
        """Conv, Add of one number per channel -> Conv with bias; MatMul, Add -> Gemm: as canonical models have them."""
        reads = Counter(name for node in self.nodes for name in node.input)
        producers = {node.output[0]: node for node in self.nodes}
        for add in list(self.nodes):
            product, bias = producers.get(add.input[0]), self.constants.get(add.input[-1])
            if add.op_type != "Add" or product is None or bias is None or reads[product.output[0]] != 1:
                continue
            if product.op_type == "Conv" and len(product.input) == 2 and bias.shape == (bias.size, 1, 1):
                product.input.append(self.constant(bias.reshape(-1)))
            elif product.op_type == "MatMul" and bias.ndim == 1:
                product.op_type = "Gemm"
                product.input.append(add.input[1])
            else:
                continue
            product.output[0] = add.output[0]
            producers[add.output[0]] = product
            self.nodes.remove(add)


def _simplify(nodes: list[onnx.NodeProto], before: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Drop nodes that hand on one of their inputs, and nodes that nothing reads."""
    outputs = {value.name for value in before.output}
    shapes = {value.name: value.type for value in (*before.input, *before.value_info, *before.output)}
    kept: dict[str, onnx.NodeProto] = {}
    stands_for: dict[str, str] = {}
    for original in nodes:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        node.input[:] = [stands_for.get(name, name) for name in node.input]
        same = _handed_on(node, kept)
        # an addition of zero may still broadcast: the types must be known and agree
        if same is None or node.output[0] in outputs or shapes.get(same) != shapes.get(node.output[0]):
            kept |= dict.fromkeys(node.output, node)
        else:
            stands_for[node.output[0]] = same
    return leading_to([node for name, node in kept.items() if name == node.output[0]], outputs)


def _handed_on(node: onnx.NodeProto, producers: dict[str, onnx.NodeProto]) -> str | None:
    """The input that a node's output equals: of Identity, of Add with zero, of Relu after Relu."""
    inputs: list[str] = list(node.input)
    op_types = [producers[name].op_type if name in producers else "" for name in inputs]
    if node.op_type == "Identity" or (node.op_type == "Relu" and op_types == ["Relu"]):
        return inputs[0]
    if node.op_type == "Add" and "ConstantOfShape" in op_types:
        zero = op_types.index("ConstantOfShape")
        return (
            None if producers[inputs[zero]].attribute else inputs[1 - zero]
        )  # an attribute: filled with another value
    return None
