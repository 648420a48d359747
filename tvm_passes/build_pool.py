"""Build many variants of many kernels at once, in processes of their own.

Generating code takes a tenth of a second for each kernel, and nothing is timed meanwhile: so every core builds.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from device_targets import child_process
from gos_adapt.errors import ConfigError
from tvm_passes.build import cpu_of, target_of
from tvm_passes.compat import PrimFunc, save_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from device_targets import Device
    from tvm_passes.pipeline import Parameter
    from tvm_passes.schedules import Variant

_PER_LIBRARY = 16
"""Trials in one library: enough that linking is a small part, few enough that a crash loses little."""
_BUILD_S, _TRIAL_S = 10.0, 1.25
"""A library may take so long, and so much more for each trial, some twenty times what it takes: whatever takes longer
is taken not to end, as one tuned order of a softmax over 4x64x64, which had not in 120 s."""


@dataclass(frozen=True)
class Trial:
    """One kernel under one variant.

    Attributes:
        kernel: Its key.
        func: Unscheduled.
        constants: Positions of its constant parameters.
        variant: How to schedule it; `None` to leave it as it is.
    """

    kernel: str
    func: PrimFunc
    constants: frozenset[int]
    variant: Variant | None


@dataclass(frozen=True)
class TrialLibrary:
    """A library of trials on disk: for each trial that could be built, its parameters; for the others, why not."""

    path: Path
    parameters: Mapping[str, tuple[Parameter, ...]]
    refused: Mapping[str, str]


class BuildPool:
    """Processes that build trials for one device; a context manager."""

    def __init__(self, device: Device, folder: Path) -> None:
        self._cpu, self._target = asdict(cpu_of(device)), str(target_of(device))
        self._folder = folder
        self._numbers = itertools.count(1)
        self._threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        self._idle: list[_Worker] = []

    def __enter__(self) -> BuildPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for worker in self._idle:
            worker.stop()

    def build(self, trials: Mapping[str, Trial]) -> list[TrialLibrary]:
        """Build named trials; every name is in exactly one of the libraries.

        Raises:
            ConfigError: nothing can be linked.
        """
        names = list(trials)
        shares = max(1, -(-len(names) // _PER_LIBRARY))
        batches = [{name: trials[name] for name in names[share::shares]} for share in range(shares)]
        return [library for libraries in self._threads.map(self._build, batches) for library in libraries]

    def _build(self, trials: Mapping[str, Trial]) -> list[TrialLibrary]:
        """Build one library; when that kills the process, each half on its own, down to the one to blame."""
        path = self._path()
        answer = self._ask({
            "path": str(path),
            "cpu": self._cpu,
            "target": self._target,
            "kernels": {trial.kernel: save_json(trial.func) for trial in trials.values()},
            "trials": {
                name: {
                    "kernel": trial.kernel,
                    "constants": sorted(trial.constants),
                    "variant": trial.variant and trial.variant.to_text(),
                }
                for name, trial in trials.items()
            },
        })  # fmt: skip
        if answer is not None:
            parameters = {
                name: tuple((tuple(shape), dtype) for shape, dtype in found)
                for name, found in answer["parameters"].items()
            }
            return [TrialLibrary(path, parameters, answer["refused"])]
        if len(trials) == 1:
            return [TrialLibrary(path, {}, dict.fromkeys(trials, "building it killed the compiler, or did not end"))]
        names: Sequence[str] = list(trials)
        halves = names[: len(names) // 2], names[len(names) // 2 :]
        return [library for half in halves for library in self._build({name: trials[name] for name in half})]

    def _path(self) -> Path:
        return self._folder / f"trials_{next(self._numbers)}.so"

    def _ask(self, job: dict[str, Any]) -> dict[str, Any] | None:
        """Return a worker's answer, or `None` when it did not end, or a new one died of it.

        An idle one may have died before the job, so that says nothing of the job.
        """
        answer = None
        try:
            with suppress(IndexError):
                answer = self._ask_worker(self._idle.pop(), job)
            return answer or self._ask_worker(_Worker(), job)
        except TimeoutError:
            return None

    def _ask_worker(self, worker: _Worker, job: dict[str, Any]) -> dict[str, Any] | None:
        answer = worker.ask(job)
        if answer is None:
            return None
        self._idle.append(worker)
        if "unlinked" in answer:
            raise ConfigError(answer["unlinked"])
        return answer


class _Worker:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            child_process.command("tvm_passes.build_worker"),
            env=child_process.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # one group with the linkers that it starts
        )

    def ask(self, job: dict[str, Any]) -> dict[str, Any] | None:
        """Return the answer; `None` if the process died. It is stopped then, and before a `TimeoutError`."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        answer = ""
        with suppress(BrokenPipeError):
            stdin.write(json.dumps(job) + "\n")
            stdin.flush()
            ready, _, _ = select.select([stdout], [], [], _BUILD_S + _TRIAL_S * len(job["trials"]))
            if not ready:
                self.stop()
                raise TimeoutError
            answer = stdout.readline()
        if not answer.endswith("\n"):
            self.stop()
            return None
        found: dict[str, Any] = json.loads(answer)
        return found

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
