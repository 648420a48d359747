"""What can be timed against each other: compiled libraries on the device, and models in ONNX Runtime beside them."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from gos_adapt.baselines import OnnxRuntime
from gos_adapt.errors import DeviceError, Rejection, last_line
from gos_adapt.interleave import Contender
from gos_adapt.quantities import Conditions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import onnx

    from device_targets import Device
    from device_targets.session import Session

Array = np.ndarray[Any, Any]


def compiled(library: Path, inputs: Mapping[str, Array], session: Session) -> Contender:
    """Load a compiled library onto the device.

    Args:
        library: Its ``main`` takes the inputs in their order.
        inputs: By name.
        session: Reaches the device.

    Raises:
        DeviceError: the device refuses it.
    """
    loaded, arrays = session.load(library), list(inputs.values())
    evaluate = loaded.function_evaluator("main", arrays)
    return Contender(partial(evaluate, 1), partial(loaded.run, arrays), session.conditions)


def in_onnx_runtime(proto: onnx.ModelProto, inputs: Mapping[str, Array], device: Device) -> Contender:
    """Open a model in ONNX Runtime in this process, on as many threads as the device has; it may refuse the model.

    It runs here whatever the device is, and is timed only where that is this machine.
    """
    try:
        runtime = OnnxRuntime(proto, device.threads, dict(inputs))
    except Exception as failure:  # its own errors; a baseline that cannot be had is a finding
        return absent(Rejection(f"ONNX Runtime cannot open the model: {last_line(failure)}"), device)
    sample = runtime.sample if device.local else _refusal(f"ONNX Runtime is on this machine, not on {device.name}")
    return Contender(sample, runtime.outputs, partial(_conditions, device))


def absent(why: Rejection, device: Device) -> Contender:
    """Stand in for what could not be made; its measurement is the reason."""
    refuse = _refusal(why.reason)
    return Contender(refuse, refuse, partial(_conditions, device))


def _refusal(why: str) -> Callable[..., NoReturn]:
    def refuse(*_: object) -> NoReturn:
        raise DeviceError(why)

    return refuse


def _conditions(device: Device) -> Conditions:
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Conditions(device.name, device.threads, date, "perf_counter around a bound call")
