"""Check what is about to be delivered; a failure here means there is no success to report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx

from gos_adapt.errors import VerificationError, last_line
from gos_adapt.result import Measured, Verification
from gos_adapt.task import open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gos_adapt.model.model import Array, Model

TOLERANCE = 1e-4
"""Largest deviation from ONNX Runtime, relative to the outputs' scale."""
SAME = 1e-3
"""Likewise of the adapted model from the original, without a task: each of ten sites may take a tenth of it."""
INPUTS = 256


def verify_interface(adapted: Model) -> None:
    """Check that the adapted ONNX model is valid and is called like the original, at any batch size.

    Raises:
        VerificationError: it is not.
    """
    try:
        onnx.checker.check_model(adapted.proto, full_check=True)
        runtime = open_session(adapted.proto.SerializeToString(), 1)
    except Exception as error:  # the checker, shape inference and ONNX Runtime each have errors of their own
        raise VerificationError(f"the adapted model is not valid ONNX: {last_line(error)}") from error
    for side, specs, found in (
        ("input", adapted.inputs, runtime.get_inputs()),
        ("output", adapted.outputs, runtime.get_outputs()),
    ):
        if [spec.name for spec in specs] != [value.name for value in found]:
            raise VerificationError(f"the adapted model's {side}s changed: {[value.name for value in found]}")
    for batch in (1, 3) if any(isinstance(size, str) for size in adapted.inputs[0].shape) else (1,):
        feeds = {spec.name: np.zeros(spec.at_batch(batch), spec.dtype) for spec in adapted.inputs}
        for spec, output in zip(adapted.outputs, runtime.run(None, feeds), strict=True):
            if output.shape != spec.at_batch(batch):
                raise VerificationError(f"output {spec.name!r} has shape {output.shape} at batch {batch}")


def verify_numerics(
    adapted: Model, compiled: Callable[[list[Array]], Sequence[Array]], inputs: Sequence[list[Array]]
) -> Verification:
    """Compare the compiled artefact with the adapted ONNX model in ONNX Runtime.

    Args:
        adapted: What was compiled.
        compiled: Runs the artefact on the device, batch 1.
        inputs: One list of arrays per comparison.

    Raises:
        VerificationError: they deviate by more than `TOLERANCE`.
    """
    deviation = largest_deviation(compiled, _runner(adapted.proto, adapted), inputs)
    _require(deviation, TOLERANCE, "the compiled model deviates from the adapted one in ONNX Runtime", len(inputs))
    return Verification(len(inputs), Measured(deviation, "1"), TOLERANCE)


def verify_function(original: Model, adapted: Model, inputs: Sequence[list[Array]]) -> None:
    """Check that the adapted model computes what the original computes: what is promised when there is no task.

    Raises:
        VerificationError: they deviate by more than `SAME`.
    """
    run = _runner(original.original, original)
    deviation = largest_deviation(_runner(adapted.proto, original), run, inputs)
    _require(deviation, SAME, "the adapted model deviates from the original", len(inputs))


def _runner(proto: onnx.ModelProto, model: Model) -> Callable[[list[Array]], Sequence[Array]]:
    runtime = open_session(proto.SerializeToString(), 1)
    names = [spec.name for spec in model.inputs]
    return lambda arrays: runtime.run(None, dict(zip(names, arrays, strict=True)))


def largest_deviation(
    one: Callable[[list[Array]], Sequence[Array]],
    other: Callable[[list[Array]], Sequence[Array]],
    inputs: Sequence[list[Array]],
) -> float:
    """Largest difference relative to the scale of the output it is in, over all inputs; NaN if there is one."""
    pairs = [
        [np.asarray(values, np.float64) for values in pair]
        for arrays in inputs
        for pair in zip(one(arrays), other(arrays), strict=True)
    ]
    outputs = len(pairs) // len(inputs)
    worst = 0.0
    for k in range(outputs):
        difference = max((np.abs(a - b).max(initial=0.0) for a, b in pairs[k::outputs]), key=_nan_last)
        scale = max(np.abs(b).max(initial=0.0) for _, b in pairs[k::outputs])
        worst = max(worst, float(difference / max(scale, 1e-12)), key=_nan_last)
    return worst


def _nan_last(value: float) -> tuple[bool, float]:
    return bool(np.isnan(value)), value


def _require(deviation: float, tolerance: float, what: str, n: int) -> None:
    if not deviation <= tolerance:
        raise VerificationError(
            f"{what} by {deviation:.3g} of the output's scale on {n} inputs, allowed is {tolerance:g}; nothing is "
            "delivered, please report this model"
        )
