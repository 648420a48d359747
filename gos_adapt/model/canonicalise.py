"""Rewrite a checked ONNX model into the one form that every later stage reads.

A fixed list of small passes, most of them onnx_ir's and onnxscript's; none invents a tensor name, so tensors that
survive are called what the exporter called them.
"""

from __future__ import annotations

import logging
import math
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnx_ir.passes import common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

from gos_adapt.errors import ModelImportError
from gos_adapt.model.checks import STANDARD_DOMAINS, check_sizes, model_inputs, node_name
from gos_adapt.model.inference import Inferred, at_batch, infer
from gos_adapt.model.wording import quote

if TYPE_CHECKING:
    from collections.abc import Callable

# Its warnings are about what it does not fold, and no business of the user's.
logging.getLogger("onnxscript").addHandler(logging.NullHandler())

OPSET = 17
TensorShape = tuple[int, tuple[int | str, ...]]  # element type and shape
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
]

TIDYING = ir.passes.Sequential(
    passes.IdentityEliminationPass(),
    passes.RemoveUnusedNodesPass(),
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    passes.RemoveUnusedOpsetsPass(),
    passes.ClearMetadataAndDocStringPass(),
    passes.TopologicalSortPass(),
    passes.NameFixPass(),
)

_BATCHES = (2, 3)
_FIXED_SHAPES = "export a model in which every shape follows from the batch size, without NonZero or the like"


@np.errstate(all="ignore")  # `checks.check_tensors` finds what overflows
def canonicalise(original: onnx.ModelProto) -> onnx.ModelProto:
    """Return the canonical form of a model that passed `checks` (see `Model.proto`); `original` is left as it is.

    Raises:
        ModelImportError: the model cannot be written in opset 17, its shapes depend on more than the batch, or it
            computes in another float type than float32.
    """
    proto = _simplified(_named_batch(_raised(_inputs_apart(original))))
    check_sizes(proto)
    shapes = _shapes(proto)
    proto = _used_only(_plain_reshapes(proto, shapes))
    _declare(proto, shapes)
    return proto


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


def _simplified(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        model = ir.from_proto(proto)
        # Twice: a fold can expose a pattern, and a rewrite a constant.
        for _ in range(2):
            _fold(model)
            rewriter.RewritePass(RULES)(model)
        TIDYING(model)
        return ir.to_proto(model)
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        raise ModelImportError(
            f"the model cannot be simplified: {quote(str(error.__cause__ or error), 200)}; "
            "simplify it with onnxruntime's offline optimisation first"
        ) from None


def _fold(model: ir.Model) -> None:
    optimizer.fold_constants(
        model,
        onnx_shape_inference=True,
        input_size_limit=MAX_FOLDED_ELEMENTS,
        output_size_limit=MAX_FOLDED_ELEMENTS,
        should_fold=_bounded(MAX_FOLDED_ELEMENTS),
    )


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


def _shapes(proto: onnx.ModelProto) -> dict[str, TensorShape]:
    """Infer the shape of every node output at two batch sizes, where all are numbers: what grows is the batch."""
    small, large = (_shapes_at(proto, batch) for batch in _BATCHES)
    where = {name: f"{name} (node {node_name(node)})" for node in proto.graph.node for name in node.output}
    return {name: (small[name].element, _symbolic(small[name], large[name], where=where[name])) for name in small}


def _shapes_at(proto: onnx.ModelProto, batch: int) -> dict[str, Inferred]:
    """Infer shapes with the batch fixed; what exporters compute from it is then constant, and folds."""
    model = ir.from_proto(at_batch(proto, batch))
    _fold(model)
    return infer(proto, batch=batch, propagate_values=True) | infer(
        ir.to_proto(model), batch=batch, propagate_values=True
    )


def _plain_reshapes(proto: onnx.ModelProto, shapes: dict[str, TensorShape]) -> onnx.ModelProto:
    """Make the shapes that exporters compute from the batch for a Reshape constant, -1 standing for the batch."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    taken = {*shapes, *stored, *(value.name for value in proto.graph.input)}
    for node in proto.graph.node:
        if node.op_type != "Reshape" or node.input[1] in stored:
            continue
        sizes = [-1 if isinstance(size, str) else size for size in shapes[node.output[0]][1]]
        if sizes.count(-1) <= 1:
            candidates = (f"{node.output[0]}_shape{i or ''}" for i in count())
            node.input[1] = next(name for name in candidates if name not in taken)
            taken.add(node.input[1])
            proto.graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), node.input[1]))
    return proto


def _used_only(proto: onnx.ModelProto) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    TIDYING(model)
    return ir.to_proto(model)


def _declare(proto: onnx.ModelProto, shapes: dict[str, TensorShape]) -> None:
    """Write down the shape of every tensor."""
    outputs = {value.name: value for value in proto.graph.output}
    del proto.graph.value_info[:]
    for name in (name for node in proto.graph.node for name in node.output if name):
        value = helper.make_tensor_value_info(name, *shapes[name])
        if name in outputs:
            outputs[name].CopyFrom(value)
        else:
            proto.graph.value_info.append(value)
    for name in outputs:
        if name not in shapes:
            raise ModelImportError(f"output {quote(name)} does not depend on any input; remove it from the outputs")
        if any(isinstance(size, str) and (axis, size) != (0, BATCH) for axis, size in enumerate(shapes[name][1])):
            raise ModelImportError(
                f"output {quote(name)} has shape {shapes[name][1]}; only axis 0 may grow with the batch: "
                "export the model with the batch axis fixed"
            )


def _symbolic(small: Inferred, large: Inferred, *, where: str) -> tuple[int | str, ...]:
    if small.element in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
        raise ModelImportError(
            f"{quote(where)} computes in {TensorProto.DataType.Name(small.element)}; export the model in float32"
        )
    if small.shape is None or large.shape is None or len(small.shape) != len(large.shape):
        raise ModelImportError(f"the shape of {quote(where)} depends on the values of the input; {_FIXED_SHAPES}")
    return tuple(_size(a, b, where) for a, b in zip(small.shape, large.shape, strict=True))


def _size(small: int | None, large: int | None, where: str) -> int | str:
    if small is None or large is None or (small != large and small * _BATCHES[1] != large * _BATCHES[0]):
        raise ModelImportError(f"the shape of {quote(where)} depends on the values of the input; {_FIXED_SHAPES}")
    if small == large:
        return small
    per_sample = small // _BATCHES[0]
    return BATCH if per_sample == 1 else f"{per_sample}*{BATCH}"
