"""Check what is about to be delivered; a failure here means there is no success to report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx

from gos_adapt.baselines import session
from gos_adapt.errors import VerificationError
from gos_adapt.result import Measured, Verification

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gos_adapt.model.model import Array, Model

TOLERANCE = 1e-4
"""Largest deviation from ONNX Runtime, relative to the outputs' scale."""
INPUTS = 256


def verify_interface(adapted: Model) -> None:
    """Check that the adapted ONNX model is valid and is called like the original, at any batch size.

    Raises:
        VerificationError: it is not.
    """
    try:
        onnx.checker.check_model(adapted.proto, full_check=True)
    except onnx.checker.ValidationError as error:
        raise VerificationError(f"the adapted model is not valid ONNX: {str(error).splitlines()[0]}") from error
    runtime = session(adapted.proto, 1)
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
    runtime = session(adapted.proto, 1)
    deviation, scale = 0.0, 0.0
    for arrays in inputs:
        expected = runtime.run(None, {spec.name: array for spec, array in zip(adapted.inputs, arrays, strict=True)})
        for got, wanted in zip(compiled(arrays), expected, strict=True):
            difference = np.abs(got - wanted).max(initial=0.0)
            deviation = float(np.maximum(deviation, difference))  # np.maximum keeps NaN
            scale = max(scale, float(np.abs(wanted).max(initial=0.0)))
    relative = deviation / max(scale, 1e-12)
    if not relative <= TOLERANCE:
        raise VerificationError(
            f"the compiled model deviates from ONNX Runtime by {relative:.3g} of the output's scale on {len(inputs)} "
            f"inputs, allowed is {TOLERANCE:g}; nothing was delivered"
        )
    return Verification(len(inputs), Measured(relative, "1"), TOLERANCE)
