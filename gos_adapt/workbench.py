"""Compile things for one device and time them there: what the search and the reports rest on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from device_targets.session import LOST, Effort, Session, measure
from gos_adapt.errors import AdaptError, DeviceError
from gos_adapt.model.random_array import random_array
from gos_adapt.operators.onnx_form import to_onnx
from gos_adapt.profiling.profile import KernelLatency, Profile, attribute
from gos_adapt.quantities import Measurement
from tvm_passes.build import build_functions, build_kernels, build_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gos_adapt.model.model import Array, Model, Site
    from gos_adapt.operators.graph import OperatorGraph
    from tvm_passes.build import Built

WHOLE = "whole model"
PROFILE_EFFORT = Effort(rounds=5, samples=8)
CANDIDATE_EFFORT = Effort(rounds=5, samples=6)


class Workbench:
    """Measures on one device through its session; a context manager that owns a scratch folder."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.device = session.device
        self._folder = TemporaryDirectory(prefix="adapt-")
        self._count = 0

    def __enter__(self) -> Workbench:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def profile(self, model: Model, sites: Sequence[Site]) -> Profile:
        """Time every kernel of a model alone and the model as a whole, at batch 1, interleaved."""
        built = build_model(model.proto, self.device, 1, self._path())
        kernels = build_kernels(model.proto, self.device, 1, self._path())
        whole, parts = self.session.load(built.path), self.session.load(kernels.path)
        measured = measure(
            self.session,
            {WHOLE: partial(whole.function_evaluator, "main", random_inputs(built, "main"))}
            | {
                kernel.name: partial(parts.kernel_evaluator, kernel.name, kernel.parameters)
                for kernel in kernels.kernels
            },
            PROFILE_EFFORT,
        )
        if not measured[WHOLE].ok:
            raise DeviceError(f"{self.device.name} could not run {model.name}: {measured[WHOLE].error}")
        latencies = [KernelLatency(k.name, k.tensors, k.rule, measured[k.name]) for k in kernels.kernels]
        return attribute(measured[WHOLE], latencies, sites)

    def measure_operators(self, batch: Sequence[tuple[OperatorGraph, tuple[Array, ...]]]) -> list[Measurement]:
        """Time operators as they would run inside a model: one library, one upload, interleaved.

        One that cannot be built costs only itself: the batch is halved until it stands alone.
        """
        names = [f"candidate_{k}" for k in range(len(batch))]
        protos = {name: to_onnx(operator, weights) for name, (operator, weights) in zip(names, batch, strict=True)}
        measured = self._measure_functions(protos)
        return [measured[name] for name in names]

    def _measure_functions(self, protos: dict[str, Any]) -> dict[str, Measurement]:
        try:
            built = build_functions(protos, self.device, 1, self._path())
            library = self.session.load(built.path)
        except AdaptError as failure:
            if len(protos) == 1:
                (name,) = protos
                return {name: Measurement((), self.session.conditions(), str(failure))}
            names = list(protos)
            halves = names[: len(names) // 2], names[len(names) // 2 :]
            return {
                name: latency
                for half in halves
                for name, latency in self._measure_functions({name: protos[name] for name in half}).items()
            }
        measured = measure(
            self.session,
            {name: partial(library.function_evaluator, name, random_inputs(built, name)) for name in protos},
            CANDIDATE_EFFORT,
        )
        for name in [name for name, latency in measured.items() if (latency.error or "").startswith(LOST)]:
            measured |= self._measure_functions({name: protos[name]})  # another one's crash is not this one's fault
        return measured

    def _path(self) -> Path:
        """A new file name: a device never sees two libraries of one name."""
        self._count += 1
        return Path(self._folder.name) / f"library_{self._count}.so"


def random_inputs(built: Built, function: str) -> list[Array]:
    """Random inputs for a compiled function."""
    rng = np.random.default_rng(0)
    return [random_array(shape, dtype, rng) for shape, dtype in built.parameters[function]]
