"""Shapes of every tensor of a model at one batch size, computed by ONNX from the inputs alone."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import TensorProto, shape_inference

from gos_adapt.errors import ModelImportError
from gos_adapt.model.wording import quote


@dataclass(frozen=True)
class Inferred:
    """Element type (`TensorProto.DataType`, 0 when not a tensor) and shape; `None` where it does not follow."""

    element: int
    shape: tuple[int | None, ...] | None

    @property
    def known_shape(self) -> tuple[int, ...] | None:
        """The shape, if all of it follows."""
        known = tuple(size for size in self.shape or () if size is not None)
        return known if self.shape is not None and len(known) == len(self.shape) else None

    @property
    def is_integer(self) -> bool:
        """Whether shape arithmetic could be done in it."""
        return self.element in (TensorProto.INT64, TensorProto.INT32)


def infer(proto: onnx.ModelProto, *, batch: int, propagate_values: bool) -> dict[str, Inferred]:
    """Infer the type of every node output with the dynamic batch axis set to `batch`.

    What the file declares about its own intermediate tensors and outputs is not believed.

    Args:
        proto: Any checked model; initialisers may also be inputs.
        batch: Put in place of a dynamic first axis.
        propagate_values: Also follow integer values through shape arithmetic.

    Raises:
        ModelImportError: the shapes contradict each other.
    """
    try:
        graph = shape_inference.infer_shapes(
            at_batch(proto, batch), check_type=True, strict_mode=True, data_prop=propagate_values
        ).graph
    except (shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise ModelImportError(
            f"the shapes contradict each other at batch {batch}: {quote(str(error), 200)}; "
            "export the model again, with the batch axis fixed if the model works for one size only"
        ) from None
    types = {value.name: value.type for value in [*graph.value_info, *graph.output]}
    return {
        name: _inferred(types[name]) if name in types else Inferred(TensorProto.UNDEFINED, None)
        for node in graph.node
        for name in node.output
        if name
    }


def at_batch(proto: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Copy a model with its dynamic batch axis fixed and without what it declares about other tensors than inputs."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        for dim in value.type.tensor_type.shape.dim[:1]:
            if not dim.HasField("dim_value"):
                dim.dim_value = batch
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    return fixed


def _inferred(value_type: onnx.TypeProto) -> Inferred:
    tensor = value_type.tensor_type
    if not tensor.HasField("shape"):
        return Inferred(tensor.elem_type, None)
    dims = (dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return Inferred(tensor.elem_type, tuple(dims))
