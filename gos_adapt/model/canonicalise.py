"""Rewrite a checked ONNX model into the one form that every later stage reads.

A fixed list of small passes, most of them onnx_ir's and onnxscript's; none invents a tensor name, so tensors that
survive are called what the exporter called them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
from onnx import TensorProto, version_converter
from onnx_ir.passes import common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

from gos_adapt.errors import ModelImportError
from gos_adapt.model.checks import STANDARD_DOMAINS, check_sizes, model_inputs, node_name
from gos_adapt.model.inference import Inferred, infer
from gos_adapt.model.wording import quote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OPSET = 17
BATCH = "N"
MAX_FOLDED_ELEMENTS = 2**28

# Cheap in numpy, and what shape arithmetic, weight layout and rescaling are written with.
FOLDABLE = frozenset(
    """
    Abs Add Cast Ceil Clip Concat Constant ConstantOfShape Div Equal Exp Expand EyeLike Flatten Floor Gather Greater
    Less Max Min Mod Mul Neg Not Pow Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Reshape Shape
    Size Slice Sqrt Squeeze Sub Tile Transpose Unsqueeze Where
    """.split()  # noqa: SIM905 (a list of words reads better than a list of strings)
)

RULES = [
    rules.normalize_pad_format_conv_rule,
    rules.fuse_pad_into_conv_rule,
    rules.fuse_batchnorm_into_conv_rule,
    rules.fuse_batchnorm_into_conv_transpose_rule,
    rules.fuse_batchnorm_into_gemm_rule,
    rules.dropout_zero_rule,
    rules.dropout_inference_rule,
    rules.mul_by_1_rule,
    rules.div_by_1_rule,
    rules.add_0_rule,
    rules.sub_0_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.materialize_reshape_shape_rule,
]


def canonicalise(original: onnx.ModelProto) -> onnx.ModelProto:
    """Return the canonical form of a model that passed `checks` (see `Model.proto`); `original` is left as it is.

    Raises:
        ModelImportError: the model cannot be written in opset 17, its shapes depend on more than the batch, or it
            computes in another float type than float32.
    """
    proto = _named_batch(_raised(_inputs_apart(original)))
    proto = _rewritten(proto)
    return _with_shapes(proto)


def _inputs_apart(original: onnx.ModelProto) -> onnx.ModelProto:
    """Copy the model, initialisers no longer inputs, and without what it declares about intermediate tensors."""
    proto = onnx.ModelProto()
    proto.CopyFrom(original)
    inputs = model_inputs(original.graph)
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    del proto.graph.value_info[:]
    # Since IR 4 an initialiser need not be an input.
    proto.ir_version = max(proto.ir_version, 8)
    return proto


def _raised(proto: onnx.ModelProto) -> onnx.ModelProto:
    version = next(entry.version for entry in proto.opset_import if entry.domain in STANDARD_DOMAINS)
    if version >= OPSET:
        return proto
    try:
        return version_converter.convert_version(proto, OPSET)
    except (version_converter.ConvertError, RuntimeError, ValueError, IndexError) as error:
        raise ModelImportError(
            f"opset {version} cannot be raised to {OPSET}: {quote(str(error), 200)}; export with opset_version={OPSET}"
        ) from None


def _named_batch(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Call every dynamic first axis by one name; forget the outputs' shapes, which are inferred again."""
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim[:1]:
            if not dim.HasField("dim_value"):
                dim.dim_param = BATCH
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return proto


def _rewritten(proto: onnx.ModelProto) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    try:
        # Twice: a fold can expose a pattern, and a rewrite a constant.
        for _ in range(2):
            optimizer.fold_constants(
                model,
                onnx_shape_inference=True,
                input_size_limit=MAX_FOLDED_ELEMENTS,
                output_size_limit=MAX_FOLDED_ELEMENTS,
                should_fold=_bounded(MAX_FOLDED_ELEMENTS),
            )
            rewriter.RewritePass(RULES)(model)
        ir.passes.Sequential(
            passes.IdentityEliminationPass(),
            passes.RemoveUnusedNodesPass(),
            passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            passes.RemoveUnusedOpsetsPass(),
            passes.ClearMetadataAndDocStringPass(),
            passes.TopologicalSortPass(),
            passes.NameFixPass(),
        )(model)
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        cause = error.__cause__ or error
        raise ModelImportError(
            f"the model cannot be simplified: {quote(str(cause), 200)}; try onnxruntime's or onnxsim's simplified form"
        ) from None
    return ir.to_proto(model)


def _bounded(budget: int) -> Callable[[ir.Node], bool]:
    """Return a rule that lets constants be computed while the results, whose sizes must be known, fit in `budget`."""

    def should_fold(node: ir.Node) -> bool:
        nonlocal budget
        shapes = [output.shape for output in node.outputs]
        if node.op_type not in FOLDABLE or any(shape is None or not shape.is_static() for shape in shapes):
            return False
        elements = sum(math.prod(shape.numpy()) for shape in shapes if shape is not None)
        if elements > budget:
            return False
        budget -= elements
        return True

    return should_fold


def _with_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Write down the shape of every tensor.

    Shapes are inferred at two batch sizes, where they are all numbers, and compared: what grows with the batch is
    written as a multiple of it.
    """
    check_sizes(proto)
    # When the batch is fixed, the two are the same.
    small, large = (infer(proto, batch=batch, propagate_values=True) for batch in (2, 3))
    node_of = {name: node for node in proto.graph.node for name in node.output if name}
    shapes = {
        name: _symbolic(small[name], large[name], where=f"{name} (node {node_name(node)})")
        for name, node in node_of.items()
    }
    outputs = {value.name for value in proto.graph.output}
    for value in proto.graph.output:
        if value.name not in shapes:
            raise ModelImportError(
                f"output {quote(value.name)} does not depend on the input; remove it from the model's outputs"
            )
        del value.type.tensor_type.shape.dim[:]
        value.type.tensor_type.shape.dim.extend(_dims(shapes[value.name]))
        if any(isinstance(size, str) and (axis, size) != (0, BATCH) for axis, size in enumerate(shapes[value.name])):
            raise ModelImportError(
                f"output {quote(value.name)} has shape {shapes[value.name]}; only axis 0 may grow with the batch: "
                "export the model with the batch axis fixed"
            )
    del proto.graph.value_info[:]
    for name, shape in shapes.items():
        if name not in outputs:
            proto.graph.value_info.append(onnx.helper.make_tensor_value_info(name, small[name].element, shape))
    return proto


def _symbolic(small: Inferred, large: Inferred, *, where: str) -> tuple[int | str, ...]:
    if small.element in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
        raise ModelImportError(
            f"{quote(where)} computes in {TensorProto.DataType.Name(small.element)}; export the model in float32"
        )
    if small.shape is None or large.shape is None or len(small.shape) != len(large.shape):
        raise ModelImportError(f"the shape of {quote(where)} depends on the values of the input; {_FIXED_SHAPES}")
    return tuple(_size(a, b, where) for a, b in zip(small.shape, large.shape, strict=True))


def _size(small: int | None, large: int | None, where: str) -> int | str:
    if small is None or large is None or (small != large and small * 3 != large * 2):
        raise ModelImportError(f"the shape of {quote(where)} depends on the values of the input; {_FIXED_SHAPES}")
    if small == large:
        return small
    return BATCH if small == 2 else f"{small // 2}*{BATCH}"


_FIXED_SHAPES = "export a model in which every shape follows from the batch size, without NonZero or the like"


def _dims(shape: tuple[int | str, ...]) -> Iterator[onnx.TensorShapeProto.Dimension]:
    for size in shape:
        dim = onnx.TensorShapeProto.Dimension()
        if isinstance(size, str):
            dim.dim_param = size
        else:
            dim.dim_value = size
        yield dim
