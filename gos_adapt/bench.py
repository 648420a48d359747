"""Time a model beside what else could run it: one table, and one of its kernels.

All contenders take turns within one run, on equal threads, with the same inputs; their outputs are compared as well,
for a fast wrong answer is worth nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import onnx

from device_targets import DEVICES
from device_targets.reach import HERE, Reach
from device_targets.session import session_with
from gos_adapt import baselines
from gos_adapt.contenders import absent, compiled, in_onnx_runtime
from gos_adapt.device_peaks import device_peaks
from gos_adapt.environment import read_environment
from gos_adapt.errors import ConfigError, ModelImportError, Rejection
from gos_adapt.interleave import ROUNDS, interleave
from gos_adapt.json_form import encode
from gos_adapt.model.load import load_model
from gos_adapt.model.random_array import random_samples
from gos_adapt.quantities import Count, Measurement
from gos_adapt.verify import largest_deviation
from gos_adapt.workbench import Workbench
from tvm_passes.build import build_default

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from device_targets import Device
    from device_targets.session import Session
    from gos_adapt.cost.peaks import Peaks
    from gos_adapt.environment import Environment
    from gos_adapt.interleave import Contender
    from gos_adapt.model.model import Array, Model
    from gos_adapt.profiling.profile import KernelLatency
    from gos_adapt.progress import Progress
    from tvm_passes.build import Built
    from tvm_passes.pipeline import Kernel

FP32, INT8, TVM, OURS = "onnxruntime_fp32", "onnxruntime_int8", "tvm_default", "ours"
CANONICAL = "onnxruntime_fp32_canonical"
ORIGINAL, ADAPTED = "original", "adapted"


@dataclass(frozen=True)
class Entry:
    """One contender.

    Attributes:
        latency: At batch 1.
        deviation: Largest difference of its outputs from those of ONNX Runtime fp32, relative to their scale; `None`
            when either did not run, or they are not finite.
    """

    latency: Measurement
    deviation: float | None


@dataclass(frozen=True)
class Layer:
    """One kernel call of the compiled model.

    Attributes:
        tensors: ONNX tensors it computes.
        rule: The schedule rule that took it.
        latency: Of one call.
        flops: Floating-point operations of one call, by definition (see `tvm_passes.count_work`).
        traffic: Size of everything that it takes and gives.
    """

    tensors: tuple[str, ...]
    rule: str
    latency: Measurement
    flops: Count
    traffic: Count

    @property
    def flops_per_s(self) -> float | None:
        """What it reaches, by its best sample."""
        return self.flops.value / self.latency.best_s if self.latency.ok else None


@dataclass(frozen=True)
class Layers:
    """Where the latency of the compiled model goes.

    Attributes:
        calls: In the order they run.
        peaks: What the device can do at best.
        gap: (sum of the calls - whole model) / whole model, by medians; `None` when something was not measured.
    """

    calls: tuple[Layer, ...]
    peaks: Peaks
    gap: float | None

    def share(self, layer: Layer) -> float | None:
        """Part of all calls' latency that is this one's, by best samples."""
        total_s = sum(call.latency.best_s for call in self.calls if call.latency.ok)
        return layer.latency.best_s / total_s if layer.latency.ok else None

    def peak_share(self, layer: Layer) -> float | None:
        """What a call reaches of the operations a second that the device can do at best."""
        return None if layer.flops_per_s is None else layer.flops_per_s / self.peaks.flops_per_s

    def roof(self, layer: Layer) -> float:
        """Operations a second that memory and arithmetic allow a call whose data are in no cache."""
        return self.peaks.roof(layer.flops.value, layer.traffic.value)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "peaks": encode(self.peaks),
            "gap": self.gap,
            "calls": [
                encode(layer)
                | {
                    "share": self.share(layer),
                    "flops_per_s": layer.flops_per_s,
                    "peak_share": self.peak_share(layer),
                    "roof_flops_per_s": self.roof(layer),
                }
                for layer in self.calls
            ],
        }


@dataclass(frozen=True)
class Bench:
    """What was measured of a model.

    Attributes:
        model: Its name.
        entries: By contender.
        layers: Of what we compiled, if asked for.
        environment: The machine this ran on.
    """

    model: str
    entries: dict[str, Entry]
    layers: Layers | None
    environment: Environment

    def ratio(self, name: str) -> tuple[float, float] | None:
        """Latency over that of ONNX Runtime fp32, by best samples and by medians."""
        mine, theirs = self.entries[name].latency, self.entries[FP32].latency
        if not (mine.ok and theirs.ok):
            return None
        return mine.best_s / theirs.best_s, mine.median_s / theirs.median_s

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "schema": 1,
            "model": self.model,
            "contenders": {
                name: {
                    "latency": entry.latency.to_json(),
                    "ratio": dict(zip(("best", "median"), self.ratio(name) or (None, None), strict=True)),
                    "deviation": entry.deviation,
                }
                for name, entry in self.entries.items()
            },
            "layers": self.layers and self.layers.to_json(),
            "environment": encode(self.environment),
        }


def bench(
    model_or_run: Path,
    target: str,
    progress: Progress,
    *,
    threads: int | None = None,
    layers: bool = False,
    reach: Reach = HERE,
) -> Bench:
    """Time a model beside ONNX Runtime and TVM's own build, or a run's original and adapted model beside ONNX Runtime.

    Args:
        model_or_run: A model's file, or a run folder.
        target: Name of a device.
        progress: Where to say what happens.
        threads: Of every contender; those of the device by default.
        layers: Also time every kernel of what we compiled.
        reach: Where the device is, if it is not this machine.

    Raises:
        AdaptError: see `gos_adapt.errors`.
    """
    device = with_threads(DEVICES[target](), threads)
    models = _models(model_or_run)
    original, last = next(iter(models.values())), next(reversed(models))
    with (
        TemporaryDirectory(prefix="adapt-") as scratch,
        session_with(device, reach, progress.note) as session,
        Workbench(session, progress) as workbench,
    ):
        folder = Path(scratch)
        libraries = {name: workbench.build(model, folder / f"{name}.so") for name, model in models.items()}
        rivals = {TVM: _tvm_default(original, device, folder, progress)} if OURS in models else {}
        with progress.stage("int8 baseline"):
            int8 = baselines.quantize(original, random_samples(original, baselines.CALIBRATION_SAMPLES), folder)
        entries = compare(original, {INT8: int8, **rivals, **libraries}, session, progress)
        found = measure_layers(models[last], libraries[last], workbench, progress) if layers else None
    return Bench(original.name, entries, found, read_environment())


def with_threads(device: Device, threads: int | None) -> Device:
    """Return `device` as it is when only so many of its threads are used.

    Raises:
        ConfigError: it does not have as many.
    """
    if threads is None:
        return device
    if not 1 <= threads <= device.threads:
        raise ConfigError(
            f"{device.name} has {device.threads} threads, got {threads}; give --threads 1 or more of them"
        )
    return replace(device, threads=threads)


def compare(
    model: Model, others: Mapping[str, onnx.ModelProto | Built | Rejection], session: Session, progress: Progress
) -> dict[str, Entry]:
    """Time a model in ONNX Runtime fp32 and others that take the same inputs, in turns, batch 1, on equal threads.

    ONNX Runtime gets the model as it was given and in canonical form, and counts as the faster of those that run: where
    batch normalisation was left apart, as in exports from torch, the model as given takes up to three times as long.

    Args:
        model: The original.
        others: Name -> an ONNX model for ONNX Runtime, a library for the device, or why there is neither.
        session: Reaches the device.
        progress: Where to say what happens.
    """
    (inputs,) = random_samples(model, 1)
    every = {FP32: model.original, CANONICAL: model.proto, **others}
    contenders = {name: _contender(what, inputs, session) for name, what in every.items()}
    with progress.stage("benchmark", ROUNDS) as advance:
        measured = interleave(contenders, advance)
    reference = _outputs([contenders[FP32], contenders[CANONICAL]])
    if ran := [name for name in (FP32, CANONICAL) if measured[name].ok]:
        contenders[FP32] = contenders[ran[0]]
        measured[FP32] = min((measured[name] for name in ran), key=lambda latency: latency.best_s)
    del measured[CANONICAL]
    return {
        name: Entry(latency, _deviation(contenders[name], reference) if latency.ok else None)
        for name, latency in measured.items()
    }


def measure_layers(model: Model, built: Built, workbench: Workbench, progress: Progress) -> Layers:
    """Time every kernel of a model as we compile it, beside the device's peaks.

    Args:
        model: The model.
        built: What it was compiled to: says what each kernel computes.
        workbench: Times it.
        progress: Where to say what happens.

    Raises:
        AdaptError: see `gos_adapt.errors`.
    """
    profile = workbench.profile(model, ())
    calls = tuple(_layer(kernel, timed) for kernel, timed in zip(built.kernels, profile.kernels, strict=True))
    return Layers(calls, device_peaks(workbench.session, progress), profile.gap)


def _models(model_or_run: Path) -> dict[str, Model]:
    """What to compile, the original first and what is delivered last."""
    if not model_or_run.is_dir():
        return {OURS: load_model(model_or_run)}
    return {name: load_model(model_or_run / f"{name}.onnx") for name in (ORIGINAL, ADAPTED)}


def _tvm_default(model: Model, device: Device, folder: Path, progress: Progress) -> Built | Rejection:
    try:
        with progress.stage("TVM's own build"):
            return build_default(model.proto, device, 1, folder / f"{TVM}.so")
    except ModelImportError as failure:  # a baseline: its absence is a finding
        return Rejection(str(failure))


def _contender(what: onnx.ModelProto | Built | Rejection, inputs: Mapping[str, Array], session: Session) -> Contender:
    if isinstance(what, Rejection):
        return absent(what, session.device)
    if isinstance(what, onnx.ModelProto):
        return in_onnx_runtime(what, inputs, session.device)
    return compiled(what.path, inputs, session)


def _outputs(contenders: Iterable[Contender]) -> Sequence[Array] | None:
    """Return what the first that can be run computes."""
    for contender in contenders:
        try:
            return contender.outputs()
        except Exception:  # its own errors; that it cannot be run is found where it is timed
            continue
    return None


def _deviation(contender: Contender, reference: Any) -> float | None:
    if reference is None:
        return None
    found = largest_deviation(lambda _: contender.outputs(), lambda _: reference, [[]])
    return found if math.isfinite(found) else None


def _layer(kernel: Kernel, timed: KernelLatency) -> Layer:
    return Layer(
        timed.tensors,
        timed.rule,
        timed.latency,
        Count(kernel.work.flops, "flop"),
        Count(kernel.work.traffic_bytes, "byte"),
    )
