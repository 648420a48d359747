"""Measure what a device can do at best, through its session, once."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from device_targets.session import Effort, measure
from gos_adapt.cost.peaks import Peaks, kept_peaks, peaks_file
from gos_adapt.errors import DeviceError
from tvm_passes.build import target_of
from tvm_passes.peak_kernels import ALONE, COMPUTE, READ, build_peak_kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    from device_targets import Device
    from device_targets.session import Session
    from gos_adapt.progress import Progress

EFFORT = Effort(rounds=10, samples=4)
ATTEMPTS = 5
WHOLE = 0.9
"""Of as many threads times one thread's peak, what all of them must reach to have been undisturbed."""


def device_peaks(session: Session, progress: Progress) -> Peaks:
    """Return the peaks of a device at its thread count.

    Raises:
        DeviceError: they cannot be measured.
        ConfigError: there is no folder to keep them in.
        RunFolderError: they cannot be kept there.
    """
    with progress.stage("peaks"):
        return kept_peaks(_identity(session.device), partial(_measure, session, progress.note), progress.note)


def _identity(device: Device) -> tuple[str, ...]:
    processor = str(target_of(device).attrs["mcpu"])
    return device.name, device.description, processor, f"{device.threads} threads", f"tvm {version('apache-tvm')}"


def _measure(session: Session, note: Callable[[str], None]) -> Peaks:
    """Take the best samples, again and again while something else seems to use a part of the device."""
    device = session.device
    with TemporaryDirectory(prefix="adapt-") as folder:
        path = Path(folder) / "peaks.so"
        kernels = build_peak_kernels(device, path)
        library = session.load(path)
    best = dict.fromkeys(kernels, 0.0)
    for _ in range(ATTEMPTS):
        measured = measure(
            session,
            {name: partial(library.kernel_evaluator, name, k.parameters) for name, k in kernels.items()},
            EFFORT,
        )
        for name, latency in measured.items():
            if not latency.ok:
                raise DeviceError(f"the peaks of {device.name} could not be measured: {name}: {latency.error}")
            best[name] = max(best[name], kernels[name].work / latency.best_s)
        if best[COMPUTE] >= WHOLE * device.threads * best[ALONE]:
            break
    else:
        scaling, kept = best[COMPUTE] / best[ALONE], peaks_file(_identity(device))
        note(
            f"{device.threads} threads of {device.name} compute only {scaling:.2f} times as much as one; if something "
            f"else is running there, delete {kept} and repeat when it is not"
        )
    return Peaks(best[COMPUTE], best[READ], session.conditions())
