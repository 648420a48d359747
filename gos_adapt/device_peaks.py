"""Measure what a device can do at best, through its session, once."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from device_targets.session import Effort, measure
from gos_adapt.cost.peaks import Peaks, kept_peaks
from gos_adapt.errors import DeviceError
from tvm_passes.build import target_of
from tvm_passes.peak_kernels import build_peak_kernels

if TYPE_CHECKING:
    from device_targets import Device
    from device_targets.session import Session
    from gos_adapt.progress import Progress

EFFORT = Effort(rounds=20, samples=4)
"""Some seconds: a peak is the best sample, and a neighbour's work on the same machine must not hide it."""


def device_peaks(session: Session, seen_flops_per_s: float, progress: Progress) -> Peaks:
    """Return the peaks of a device at its thread count.

    Args:
        session: Reaches the device.
        seen_flops_per_s: What the fastest known kernel reaches there (see `kept_peaks`).
        progress: Where to say what happens.

    Raises:
        DeviceError: they cannot be measured.
        ConfigError: they cannot be kept.
    """
    with progress.stage("peaks"):
        return kept_peaks(_identity(session.device), seen_flops_per_s, partial(_measure, session), progress.note)


def _identity(device: Device) -> tuple[str, ...]:
    processor = str(target_of(device).attrs["mcpu"])
    return device.name, device.description, processor, f"{device.threads} threads", f"tvm {version('apache-tvm')}"


def _measure(session: Session) -> Peaks:
    with TemporaryDirectory(prefix="adapt-") as folder:
        path = Path(folder) / "peaks.so"
        kernels = build_peak_kernels(session.device, path)
        library = session.load(path)
    measured = measure(
        session,
        {kernel.name: partial(library.kernel_evaluator, kernel.name, kernel.parameters) for kernel in kernels},
        EFFORT,
    )
    for name, latency in measured.items():
        if not latency.ok:
            raise DeviceError(f"the peaks of {session.device.name} could not be measured: {name}: {latency.error}")
    compute, read = (kernel.work / measured[kernel.name].best_s for kernel in kernels)
    return Peaks(compute, read, session.conditions())
