"""Read a trained model: an ONNX file, a torch.export archive or a torch module, from anyone.

``bytes ─ parse ─ checks ─ canonicalise ─ compare with the original in ONNX Runtime ─ Model``
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from gos_adapt.errors import ModelImportError, VerificationError
from gos_adapt.model import checks
from gos_adapt.model.canonicalise import BATCH, canonicalise
from gos_adapt.model.load_apart import load_apart
from gos_adapt.model.model import Model, TensorSpec
from gos_adapt.model.onnx_file import inline_weights, parse, read_bytes
from gos_adapt.model.random_array import random_array
from gos_adapt.model.wording import quote

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx
    import torch

    from gos_adapt.model.model import Array

# Folding a batch normalisation rounds each weight once more; deviations are relative to the largest output.
TOLERANCE = 1e-4

_ORT_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
    ValueError,
)


def load_model(path: Path | str, *, apart: bool = True) -> Model:
    """Read an `.onnx` file or a `.pt2` archive; nothing in either is trusted.

    Integer and boolean inputs are allowed beside float32 ones; one dynamic axis is, the first, taken as the batch.

    Args:
        path: The file; its stem becomes the model's name.
        apart: Read it in a process of its own (about 2 s more), which a hostile file may crash. `False` is for files
            this program wrote.

    Raises:
        ModelImportError: the file cannot be read, or must not be; the message says what to do.
        UnsupportedOperatorError: it holds operators that cannot be compiled, all named.
        VerificationError: its canonical form computes something else.
    """
    path = Path(path)
    if path.suffix.lower() not in (".onnx", ".pt2"):
        raise ModelImportError(
            f"{path} is neither an .onnx file nor a .pt2 archive; export the model with torch.onnx.export or "
            "torch.export.save"
        )
    if apart:
        return _model(path.stem, *load_apart(path))
    content = read_bytes(path)
    try:
        original = _original(content, path)
        return _model(path.stem, original, _canonical(original))
    except (ModelImportError, VerificationError) as error:
        raise type(error)(f"{path.name}: {error}") from None


def load_module(module: torch.nn.Module, example_inputs: tuple[Any, ...]) -> Model:
    """Read a torch module, in evaluation mode, with a dynamic batch where it allows one.

    Args:
        module: Left as it is.
        example_inputs: Positional arguments of its `forward`, tensors with the batch first.

    Raises:
        ModelImportError: torch cannot export it, or as for `load_model`.
    """
    from gos_adapt.model.torch_import import import_module  # takes seconds; ONNX needs none of it

    original = import_module(module, example_inputs)
    return _model(type(module).__name__, original, _canonical(original))


def _original(content: bytes, path: Path) -> onnx.ModelProto:
    if path.suffix.lower() == ".pt2":
        from gos_adapt.model.torch_import import import_archive  # takes seconds; ONNX needs none of it

        return import_archive(content)
    proto = parse(content)
    checks.check_structure(proto)
    inline_weights(proto, path.parent)
    return proto


def _canonical(original: onnx.ModelProto) -> onnx.ModelProto:
    checks.check_structure(original)
    checks.check_tensors(original.graph)
    checks.check_wiring(original.graph)
    checks.check_operators(original.graph)
    checks.check_interface(original.graph)
    checks.check_specification(original)
    checks.check_sizes(original)
    proto = canonicalise(original)
    checks.check_tensors(proto.graph)
    _check_computes_the_same(original, proto)
    return proto


def _model(name: str, original: onnx.ModelProto, proto: onnx.ModelProto) -> Model:
    return Model(name, proto, original, _specs(proto.graph.input), _specs(proto.graph.output))


def _specs(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    return tuple(map(_spec, values))


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    return TensorSpec(
        value.name,
        tuple(dim.dim_value if dim.HasField("dim_value") else BATCH for dim in tensor.shape.dim),
        helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
    )


def _check_computes_the_same(original: onnx.ModelProto, proto: onnx.ModelProto) -> None:
    """Run both forms on random inputs, at batch 1 and 2 where the batch is dynamic."""
    rng = np.random.default_rng(0)
    inputs = _specs(proto.graph.input)
    dynamic = any(BATCH in spec.shape for spec in inputs)
    for batch in (1, 2) if dynamic else (1,):
        feeds = {spec.name: random_array(spec.at_batch(batch), spec.dtype, rng) for spec in inputs}
        try:
            expected = _run(original, feeds)
        except _ORT_ERRORS as error:
            raise ModelImportError(
                f"ONNX Runtime cannot run the model at batch {batch}: {quote(str(error), 200)}; "
                "export it again, with the batch axis fixed if it works for one size only"
            ) from None
        try:
            actual = _run(proto, feeds)
        except _ORT_ERRORS as error:
            raise VerificationError(
                f"ONNX Runtime cannot run the canonical form: {quote(str(error), 200)}; please report this model"
            ) from None
        for output, a, b in zip(proto.graph.output, actual, expected, strict=True):
            _check_close(output.name, a, b)


def _check_close(name: str, actual: Array, expected: Array) -> None:
    finite = np.abs(expected[np.isfinite(expected)])
    bound = TOLERANCE * max(float(finite.max(initial=0)), 1e-6)
    if actual.shape != expected.shape or not np.allclose(actual, expected, rtol=0, atol=bound, equal_nan=True):
        raise VerificationError(
            f"output {quote(name)} of the canonical form differs from the original's by more than {bound:.2g}; "
            "please report this model"
        )


def _run(proto: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, feeds)
    return outputs
