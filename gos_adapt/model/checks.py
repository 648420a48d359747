"""What a model must satisfy before anything of it is computed; every refusal is one line.

The checks run in an order in which each may rely on the ones before: structure, tensors, wiring, operators, inputs and
outputs, the ONNX specification, sizes. None allocates more than the file itself holds.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, checker, helper, numpy_helper

from gos_adapt.errors import ModelImportError, UnsupportedOperatorError
from gos_adapt.model.inference import infer
from gos_adapt.model.supported_operators import NEXT_STEP, OTHERWISE, SUPPORTED
from gos_adapt.model.wording import names, quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MIN_OPSET = 9
MAX_TENSOR_BYTES = 2**30
MAX_TOTAL_BYTES = 2**32  # everything one sample produces, were nothing freed
MAX_INDEX_ELEMENTS = 2**20  # a computed integer vector longer than this is no shape arithmetic
STANDARD_DOMAINS = ("", "ai.onnx")
# Inputs and outputs: float32 features, and integers or booleans (indices, masks) that the graph turns into features.
INTERFACE_TYPES = (
    TensorProto.FLOAT,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.UINT8,
    TensorProto.INT8,
    TensorProto.BOOL,
)
_INTEGERS = {"INT8": "int32_data", "INT16": "int32_data", "INT32": "int32_data", "INT64": "int64_data"}
_UNSIGNED = {"UINT8": "int32_data", "UINT16": "int32_data", "UINT32": "uint64_data", "UINT64": "uint64_data"}
_REALS = {"FLOAT": "float_data", "DOUBLE": "double_data", "FLOAT16": "int32_data", "BFLOAT16": "int32_data"}
_DATA_FIELD = {
    TensorProto.DataType.Value(name): field
    for name, field in (_INTEGERS | _UNSIGNED | _REALS | {"BOOL": "int32_data"}).items()
}


def check_structure(proto: onnx.ModelProto) -> None:
    """Check the parts of the file around the graph: opset, domains, functions, sparse tensors."""
    if not proto.HasField("graph") or not proto.opset_import:
        raise ModelImportError("not an ONNX model: the file holds no graph; give a file written by an ONNX exporter")
    domains = [entry.domain for entry in proto.opset_import]
    standard = [entry.version for entry in proto.opset_import if entry.domain in STANDARD_DOMAINS]
    if len(set(domains)) < len(domains) or len(standard) != 1:
        raise ModelImportError(f"expected one standard opset, got domains {names(domains)}; export the model again")
    if not MIN_OPSET <= standard[0] <= onnx.defs.onnx_opset_version():
        raise ModelImportError(
            f"opset {standard[0]} is not among the supported {MIN_OPSET} to {onnx.defs.onnx_opset_version()}; "
            "export the model with opset_version=17"
        )
    if proto.functions:
        raise ModelImportError(
            f"the model defines functions ({names(f.name for f in proto.functions)}); "
            "inline them with onnx.inliner.inline_local_functions"
        )
    if proto.graph.sparse_initializer or any(a.HasField("sparse_tensor") for a in _attributes(proto.graph)):
        raise ModelImportError("the model holds sparse tensors; store its weights dense")


def check_operators(graph: onnx.GraphProto) -> None:
    """Check that the compiler knows every operator.

    Raises:
        UnsupportedOperatorError: naming every unknown operator with its nodes, and what can be done.
    """
    unknown: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        foreign = node.domain not in STANDARD_DOMAINS
        if foreign or node.op_type not in SUPPORTED or any(a.HasField("g") or a.graphs for a in node.attribute):
            unknown[f"{node.domain}.{node.op_type}" if foreign else node.op_type].append(node)
    if not unknown:
        return
    listing = "; ".join(f"{quote(op)} ({names(map(node_name, nodes))})" for op, nodes in sorted(unknown.items()))
    steps = [step for family, step in NEXT_STEP.items() if family & unknown.keys()]
    if unknown.keys() - frozenset().union(*NEXT_STEP):
        steps.append(OTHERWISE)
    raise UnsupportedOperatorError(f"operators that cannot be compiled: {listing}; {'; '.join(steps)}")


def check_tensors(graph: onnx.GraphProto) -> None:
    """Check that each stored tensor is as large as it says and holds numbers: no NaN, no infinite weight.

    A single infinite value is allowed: bounds and masks are written with it.
    """
    for tensor in stored_tensors(graph):
        expected, field = tensor_bytes(tensor), _DATA_FIELD[tensor.data_type]
        itemsize = _itemsize(tensor.data_type)
        stored = len(tensor.raw_data) if tensor.HasField("raw_data") else len(getattr(tensor, field)) * itemsize
        if stored != expected:
            raise ModelImportError(
                f"tensor {quote(tensor.name)} declares {expected} bytes and stores {stored}: "
                "the file is damaged; export or copy it again"
            )
        if field in ("float_data", "double_data") or "FLOAT16" in _type_name(tensor.data_type):
            _check_finite(tensor)


def check_wiring(graph: onnx.GraphProto) -> None:
    """Check that every tensor has one origin and that no tensor needs itself."""
    outputs = [name for node in graph.node for name in node.output if name]
    inputs = [value.name for value in graph.input]
    stored = [tensor.name for tensor in graph.initializer]
    twice = [name for defined in (outputs + inputs, outputs + stored) for name, n in Counter(defined).items() if n > 1]
    if twice:
        raise ModelImportError(f"tensors defined more than once: {names(twice)}; export the model again")
    origins = {*outputs, *inputs, *stored}
    users = {name: node_name(node) for node in graph.node for name in node.input if name}
    users |= {value.name: "the model's outputs" for value in graph.output}
    missing = [f"{name} (used by {user})" for name, user in users.items() if name not in origins]
    if missing:
        raise ModelImportError(
            f"tensors that nothing defines: {names(missing)}; an initialiser is missing: export with export_params=True"
        )
    try:
        TopologicalSorter({out: set(node.input) for node in graph.node for out in node.output if out}).prepare()
    except CycleError as error:
        raise ModelImportError(
            f"the graph has a cycle through {names(error.args[1])}; ONNX graphs are acyclic: unroll the loop"
        ) from None


def check_specification(proto: onnx.ModelProto) -> None:
    """Check the model against the ONNX specification: attributes and their types, order of nodes, versions."""
    complete = onnx.ModelProto()
    complete.CopyFrom(proto)
    for value in complete.graph.output:  # an output without a shape is common, and harmless: shapes are inferred
        value.type.tensor_type.shape.SetInParent()
    try:
        checker.check_model(complete)
    except (checker.ValidationError, ValueError, UnicodeError) as error:
        raise ModelImportError(f"not a valid ONNX model: {quote(str(error), 200)}; export it again") from None


def check_interface(graph: onnx.GraphProto) -> None:
    """Check the model's inputs and outputs: there are some, tensors of known shape but for the batch axis."""
    inputs = model_inputs(graph)
    if not inputs or not graph.output or not graph.node:
        raise ModelImportError(
            f"the model has {len(inputs)} inputs, {len(graph.node)} nodes and {len(graph.output)} outputs; "
            "each must be at least one: export a model that computes something"
        )
    for value in [*inputs, *graph.output]:
        element = value.type.tensor_type.elem_type
        if element not in INTERFACE_TYPES:
            raise ModelImportError(
                f"{quote(value.name)} is {_type_name(element)}; inputs and outputs must be float32, integer or boolean "
                "tensors: export the model in float32"
            )
    for value in inputs:
        _check_input_shape(value)
    for node in graph.node:
        if node.op_type == "BatchNormalization" and len([name for name in node.output if name]) > 1:
            raise ModelImportError(f"node {quote(node_name(node))} is in training mode; export after model.eval()")


def check_sizes(proto: onnx.ModelProto) -> None:
    """Check that one sample needs a bounded amount of memory, from shapes alone.

    Shapes that are declared and shapes that follow from the graph both count. A tensor whose shape does not follow yet
    is left to `canonicalise`, which computes nothing of unknown size.

    Raises:
        ModelImportError: one tensor over 1 GiB, all together over 4 GiB, or a computed index vector over 2^20 elements.
    """
    declared = [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]
    for value in declared:
        tensor_type = value.type.tensor_type
        dims = [dim.dim_value for dim in tensor_type.shape.dim if dim.HasField("dim_value")]
        _check_bytes(value.name, dims, tensor_type.elem_type)
    # Values are propagated through shape arithmetic only once every such vector is known to be short.
    for propagate in (False, True):
        total = 0
        for name, tensor in infer(proto, batch=1, propagate_values=propagate).items():
            sizes = tensor.known_shape
            if sizes is None:
                continue
            total += _check_bytes(name, sizes, tensor.element)
            if tensor.is_integer and len(sizes) < 2 and math.prod(sizes) > MAX_INDEX_ELEMENTS:
                raise ModelImportError(
                    f"{quote(name)} is a computed integer vector of {sizes[0]} elements, too long for a shape or an "
                    f"index (up to {MAX_INDEX_ELEMENTS}); store it as an initialiser"
                )
        if total > MAX_TOTAL_BYTES:
            raise ModelImportError(
                f"one sample needs {total / 2**30:.1f} GiB for its tensors, more than the {MAX_TOTAL_BYTES >> 30} GiB "
                "allowed; lower the input resolution"
            )


def model_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs the caller feeds: those that are not also initialisers."""
    stored = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in stored]


def stored_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor stored in the file: initialisers, and attributes of nodes."""
    yield from graph.initializer
    for attribute in _attributes(graph):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Return how many bytes a stored tensor declares.

    Raises:
        ModelImportError: its element type is not a number's, or its shape is none.
    """
    if tensor.data_type not in _DATA_FIELD:
        raise ModelImportError(
            f"tensor {quote(tensor.name)} has element type {_type_name(tensor.data_type)}, which is not supported; "
            "export the model in float32"
        )
    if any(size < 0 for size in tensor.dims):
        raise ModelImportError(
            f"tensor {quote(tensor.name)} has a negative dimension: {quote(str(list(tensor.dims)))}; export it again"
        )
    elements: int = math.prod(tensor.dims)
    return elements * _itemsize(tensor.data_type)


def node_name(node: onnx.NodeProto) -> str:
    """Return what a person can find a node by: its name, or its first output."""
    return node.name or next(iter(node.output), node.op_type)


def _attributes(graph: onnx.GraphProto) -> Iterator[onnx.AttributeProto]:
    for node in graph.node:
        yield from node.attribute


def _check_finite(tensor: onnx.TensorProto) -> None:
    values = numpy_helper.to_array(tensor)
    finite = np.isfinite(values)
    if not finite.all() and (values.size > 1 or np.isnan(values).any()):
        raise ModelImportError(
            f"tensor {quote(tensor.name)} holds {values.size - int(finite.sum())} NaN or infinite values; "
            "the training diverged or the file is damaged: export a sound checkpoint"
        )


def _check_input_shape(value: onnx.ValueInfoProto) -> None:
    if not value.type.tensor_type.HasField("shape"):
        raise ModelImportError(f"input {quote(value.name)} has no shape; {_freeze(value)}")
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if dim.HasField("dim_value"):
            if dim.dim_value < 1:
                raise ModelImportError(f"axis {axis} of input {quote(value.name)} has size {dim.dim_value}, not >= 1")
        elif axis > 0:
            symbol = quote(dim.dim_param) if dim.dim_param else "unnamed"
            raise ModelImportError(
                f"axis {axis} of input {quote(value.name)} is dynamic ({symbol}); only axis 0, the batch, may be: "
                f"{_freeze(value)}"
            )


def _freeze(value: onnx.ValueInfoProto) -> str:
    name = quote(value.name)
    return f"freeze it with python -m onnxruntime.tools.make_dynamic_shape_fixed --input_name {name} --input_shape ..."


def _check_bytes(name: str, dims: Sequence[int], element: int) -> int:
    itemsize = _itemsize(element) if element in _DATA_FIELD else 1
    size = math.prod(dims) * itemsize
    if size > MAX_TENSOR_BYTES:
        raise ModelImportError(
            f"tensor {quote(name)} of shape {quote(str(tuple(dims)))} needs {size / 2**30:.3g} GiB, more than the "
            f"{MAX_TENSOR_BYTES >> 30} GiB allowed; lower the input resolution or split the tensor"
        )
    return size


def _itemsize(element: int) -> int:
    return int(helper.tensor_dtype_to_np_dtype(element).itemsize)


def _type_name(element: int) -> str:
    known = element in TensorProto.DataType.values() and element != TensorProto.UNDEFINED
    return str(TensorProto.DataType.Name(element)) if known else "not a tensor"
