"""Compile things for one device and time them there: what the search and the reports rest on."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from device_targets.session import LOST, Effort, Session, measure
from gos_adapt.cache_folder import cache_folder
from gos_adapt.errors import DeviceError, ModelImportError, Rejection
from gos_adapt.model.random_array import random_arrays
from gos_adapt.operators.onnx_form import to_onnx
from gos_adapt.profiling.in_place import RUNS, time_in_place
from gos_adapt.profiling.profile import KernelLatency, Profile, attribute
from gos_adapt.progress import Silent
from gos_adapt.quantities import Measurement
from gos_adapt.tuning import Tuner, contested, open_store, settle
from tvm_passes.build import build, prepare, prepare_functions
from tvm_passes.object_files import ObjectFiles
from tvm_passes.schedule_kernels import guess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from device_targets.session import Library
    from gos_adapt.model.model import Array, Model, Site
    from gos_adapt.operators.graph import OperatorGraph
    from gos_adapt.progress import Progress
    from gos_adapt.tuning import Tuning
    from tvm_passes.build import Built
    from tvm_passes.pipeline import Fused
    from tvm_passes.schedule_kernels import Choose

CANDIDATE_EFFORT = Effort(rounds=5, samples=6)
WHOLE_EFFORT = Effort(rounds=40, samples=8)
"""Many turns: on a noisy machine two models had a ratio of 1.43 by the best of 40 samples and 1.37 by that of 200; and
in six repetitions with 320, 1.27 to 1.36 by the best and 1.27 to 1.34 by the median, five of them 1.325 to 1.339."""


class Workbench:
    """Measures on one device through its session; a context manager that owns a scratch folder and the tuner.

    Attributes:
        tuning_s: Seconds spent on tuning the kernels of whole models.

    Args:
        session: With the device.
        progress: Where to say that kernels are being tuned.
        store: The file that remembers tuned kernels; `None` for the one of this user.
    """

    def __init__(self, session: Session, progress: Progress | None = None, store: Path | None = None) -> None:
        self.session, self.device = session, session.device
        self._progress = progress or Silent()
        self._store = open_store(store or cache_folder() / "tuning.sqlite", self.device)
        self._tuner = Tuner(session, self._store)
        self._folder = TemporaryDirectory(prefix="adapt-")
        self._objects = ObjectFiles(Path(self._folder.name))
        self._count = 0
        self.tuning_s = 0.0

    def __enter__(self) -> Workbench:
        return self

    def __exit__(self, *_: object) -> None:
        self._objects.__exit__()
        self._tuner.__exit__()
        self._store.__exit__()
        self._folder.cleanup()

    def build(self, model: Model, path: Path, batch: int = 1, timed_repeats: int = 0) -> Built:
        """Tune the kernels of a model that were never tuned, and compile it into the library `path`.

        Args:
            model: Canonical.
            path: The library.
            batch: What every dynamic dimension becomes.
            timed_repeats: See `tvm_passes.build.build`.

        Raises:
            ModelImportError: TVM cannot import or compile it.
            DeviceUnreachableError: the device is gone.
        """
        fused = prepare(model.proto, self.device, batch)
        self._tune(fused)
        with self._progress.stage("compile"):
            return build(fused, self.device, path, self._tuner.choose, timed_repeats, self._objects)

    def profile(self, model: Model, sites: Sequence[Site]) -> Profile:
        """Time a model as a whole and each of its kernels in place, at batch 1, in turns."""
        (profile,) = self.profiles([(model, sites)])
        return profile

    def profiles(self, models: Sequence[tuple[Model, Sequence[Site]]]) -> list[Profile]:
        """Likewise several with their sites, in turns: what is compared is timed at the same speed of the machine."""
        built = [self.build(model, self._path(), timed_repeats=RUNS) for model, _ in models]
        loaded = [(self._load(each), random_inputs(each, "main")) for each in built]
        profiles = []
        timed = time_in_place(self.session, loaded)
        for each, (_, sites), (whole, latencies) in zip(built, models, timed, strict=True):
            calls = zip(each.kernels, latencies, strict=True)
            kernels = [KernelLatency(call.name, call.tensors, call.rule, latency) for call, latency in calls]
            profiles.append(attribute(whole, kernels, sites))
        return profiles

    def _tune(self, fused: Fused) -> None:
        start = time.monotonic()
        if waiting := self._tuner.unknown(fused.kernels):
            with self._progress.stage("tune kernels", len(waiting)) as advance:
                self._say(self._tuner.tune(waiting, advance), len(waiting))
        if finalists := contested(fused, self._store):
            with self._progress.stage("compare the best in place"):
                settle(fused, finalists, self._tuner, self._path, self._objects)
        self.tuning_s += time.monotonic() - start

    def _say(self, tuning: Tuning, kernels: int) -> None:
        self._progress.detail(f"{tuning.trials} variants of {kernels} kernels built and timed")
        for trial, reason in tuning.failed.items():
            self._progress.detail(f"failed: {trial}: {reason}")
        for kernel, reason in tuning.untunable.items():
            self._progress.note(f"kernel {kernel} keeps TVM's order, which is slow: {reason}")

    def measure_beside(self, original: Model, adapted: Model) -> tuple[Measurement, Measurement] | Rejection:
        """Time two whole models at batch 1 in turns, their kernels tuned; or say why the adapted one does not run.

        Raises:
            AdaptError: the original does not run, or the device is gone.
        """
        ready = {"original": self._ready(original)}
        try:
            ready["adapted"] = self._ready(adapted)
        except (ModelImportError, DeviceError) as failure:
            return Rejection(str(failure))
        evaluators = {
            name: partial(library.function_evaluator, "main", inputs) for name, (library, inputs) in ready.items()
        }
        measured = measure(self.session, evaluators, WHOLE_EFFORT)
        self.session.ensure_alive()
        failed = {name: m.error for name, m in measured.items() if m.error and not m.error.startswith(LOST)}
        if "original" in failed:
            raise DeviceError(f"timing the original failed: {failed['original']}")
        return Rejection(failed["adapted"]) if failed else (measured["original"], measured["adapted"])

    def measure_operators(
        self, batch: Sequence[tuple[OperatorGraph, tuple[Array, ...]]], *, tuned: bool = False
    ) -> list[Measurement]:
        """Time operators as they would run inside a model: one library, one upload, interleaved.

        One that cannot be built costs only itself: the batch is halved until it stands alone.

        Args:
            batch: Operators with weights.
            tuned: Whether they run on the schedules that `tune_operator` found; without, all run on guessed ones, also
                those that were tuned before: what is compared runs under like conditions.
        """
        names = [f"candidate_{k}" for k in range(len(batch))]
        protos = {name: to_onnx(operator, weights) for name, (operator, weights) in zip(names, batch, strict=True)}
        measured = self._measure_functions(protos, self._tuner.choose if tuned else guess)
        return [measured[name] for name in names]

    def tune_operator(self, operator: OperatorGraph, weights: tuple[Array, ...]) -> None:
        """Tune the kernels of an operator that were never tuned; if it cannot be imported, measuring it says so."""
        with contextlib.suppress(ModelImportError):
            fused = prepare_functions({"operator": to_onnx(operator, weights)}, self.device, 1)
            self._tuner.tune(self._tuner.unknown(fused.kernels))

    def _measure_functions(
        self, protos: dict[str, Any], choose: Choose, *, again: bool = False
    ) -> dict[str, Measurement]:
        try:
            fused = prepare_functions(protos, self.device, 1)
            built = build(fused, self.device, self._path(), choose, objects=self._objects)
            library = self._load(built)
        except (ModelImportError, DeviceError) as failure:
            if len(protos) == 1:
                (name,) = protos
                return {name: Measurement((), self.session.conditions(), str(failure))}
            names = list(protos)
            halves = names[: len(names) // 2], names[len(names) // 2 :]
            return {
                name: latency
                for half in halves
                for name, latency in self._measure_functions({name: protos[name] for name in half}, choose).items()
            }
        measured = measure(
            self.session,
            {name: partial(library.function_evaluator, name, random_inputs(built, name)) for name in protos},
            CANDIDATE_EFFORT,
        )
        if again or self.session.alive():
            return measured
        # the device may have been unplugged, or one crashed it: whoever failed has a try alone, and none a third
        for name in [name for name, latency in measured.items() if latency.error]:
            measured |= self._measure_functions({name: protos[name]}, choose, again=True)
        return measured

    def _ready(self, model: Model) -> tuple[Library, list[Array]]:
        built = self.build(model, self._path())
        return self._load(built), random_inputs(built, "main")

    def _load(self, built: Built) -> Library:
        """Upload a library of the scratch folder, and remove it there: large models would fill the disk."""
        library = self.session.load(built.path)
        built.path.unlink()
        return library

    def _path(self) -> Path:
        """A new file name: a device never sees two libraries of one name."""
        self._count += 1
        return Path(self._folder.name) / f"library_{self._count}.so"


def random_inputs(built: Built, function: str) -> list[Array]:
    """Random inputs for a compiled function."""
    return random_arrays(built.parameters[function])
