"""Talk to a device through TVM's RPC: upload a library, run it, time it.

The host is reached the same way as a board: a server process of its own, so that what is measured shares nothing with
the process that searches. A crash of the code under test costs the session's child, not this process: the session
reconnects and the failure becomes a `Measurement` with its reason.

References: docs/adr/0011; TVM's `time_evaluator` runs a function once to warm up, then `repeat` times `number`
runs.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import select
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import relax, rpc

from device_targets import child_process
from device_targets.local_server import START_THREADS
from device_targets.needs import check_needs
from gos_adapt.errors import DeviceError, DeviceUnreachableError, last_line
from gos_adapt.quantities import Conditions, Measurement

if TYPE_CHECKING:
    from types import TracebackType

    from device_targets.device import Device

Array = np.ndarray[Any, Any]
Evaluator = Callable[[int, int], Sequence[float]]

_START_TIMEOUT_S = 120.0
_CALL_TIMEOUT_S = 300.0
_SAMPLE_S = 0.5e-3  # one sample runs at least this long: a thousand times the resolution of the device's clock
_MATERIAL = 2**25
"""Elements of tensors kept on the device to time kernels on: a model's largest fit."""
_METHOD = "rpc time_evaluator"
TIMED = "_timed"
"""Ends the name of a compiled function that, besides its results, returns when each of its kernels began and ended."""
LOST = "the device lost the session"
"""Begins the error of a measurement that failed because another one crashed the device."""


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes:
        rounds: Times that all functions are visited one after the other, so that a slow moment hits all of them.
        samples: Samples of each function in a round.
    """

    rounds: int = 5
    samples: int = 8


def check_connected(device: Device) -> None:
    """Refuse to measure on a device that cannot be reached.

    Raises:
        DeviceUnreachableError: it is not this machine, and there is no way to another yet.
    """
    if not device.local:
        raise DeviceUnreachableError(
            f"measuring on boards is not available yet, so nothing can be run on {device.name}; "
            f"'adapt compile MODEL --target {device.name} --out DIR' compiles for it"
        )


class Session:
    """A connection to one device; a context manager, and the only owner of its server process."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._server: subprocess.Popen[str] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._remote: Any = None
        self._key = secrets.token_hex(16)
        self._port = 0
        self._uploads = 0
        self._material: dict[tuple[int, tuple[int, ...], str], Any] = {}

    def __enter__(self) -> Session:
        check_connected(self.device)
        self._folder = tempfile.TemporaryDirectory(prefix="adapt-", ignore_cleanup_errors=True)
        try:
            self._start()
            self._connect()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stop()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def load(self, library: Path) -> Library:
        """Upload a compiled library (``.so``) and open it on the device.

        Raises:
            DeviceError: the device refuses the library, or could not run it (see `check_needs`).
            DeviceUnreachableError: it does not answer.
        """
        check_needs(library, self.device)
        self.ensure_alive()
        try:
            self._uploads += 1
            name = f"{self._uploads}-{library.name}"  # overwriting a library that is mapped would crash the device
            with self.watched("loading a library"):
                self._remote.upload(bytearray(library.read_bytes()), name)
                loaded = Library(self, self._remote.load_module(name))
                self._remote.remove(name)  # mapped by now: nothing piles up on the device
            return loaded
        except Exception as failure:
            if not self.alive():
                raise self._unreachable("while it loaded a library") from failure
            raise DeviceError(f"device {self.device.name} refused {library.name}: {last_line(failure)}") from failure

    def material(self, position: int, shape: tuple[int, ...], dtype: str) -> Any:
        """Return a tensor on the device to time kernels on: random real numbers, or zeros where it may hold indices.

        Those of one position, shape and dtype share it, for filling it takes longer than most kernels do.
        """
        key = (position, shape, dtype)
        if key not in self._material:
            if sum(math.prod(shape) for _, shape, _ in self._material) > _MATERIAL:
                self._material.clear()
            if dtype.startswith("float"):
                tensor = tvm.runtime.empty(shape, dtype, self._remote.cpu())
                self._remote.get_function("tvm.contrib.random.random_fill_for_measure")(tensor)
            else:
                tensor = tvm.runtime.tensor(np.zeros(shape, dtype), self._remote.cpu())
            self._material[key] = tensor
        return self._material[key]

    @property
    def connection(self) -> object:
        """Identity of the present connection: what was loaded through another one is gone."""
        return self._remote

    def conditions(self) -> Conditions:
        """What measurements taken now are taken under."""
        return Conditions(
            self.device.name, self.device.threads, datetime.now(UTC).isoformat(timespec="seconds"), _METHOD
        )

    def alive(self) -> bool:
        """Whether the device answers."""
        if self._remote is None or self._server is None or self._server.poll() is not None:
            return False
        try:
            with self.watched("a sign of life"):
                self._remote.get_function("runtime.GetDeviceAttr")
        except Exception:  # TVM raises whatever the transport raises; the answer is the same
            return False
        return True

    def ensure_alive(self) -> None:
        """Reconnect after a crash of the code under test, to the same server or else to a new one.

        Raises:
            DeviceUnreachableError: no server comes up.
        """
        if self.alive():
            return
        self._remote = None
        try:
            self._connect()
        except DeviceUnreachableError:
            self._start()
            self._connect()

    def _start(self) -> None:
        if self._folder is None:
            raise DeviceError(f"the session with {self.device.name} is closed; open it with 'with Session(device):'")
        self._stop()
        variables = {"TVM_NUM_THREADS": str(self.device.threads), "TMPDIR": self._folder.name}
        with (Path(self._folder.name) / "server.log").open("a") as log:
            self._server = subprocess.Popen(
                child_process.command("device_targets.local_server"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_process.environment() | variables,
                text=True,
                start_new_session=True,  # Ctrl-C at the terminal reaches us alone; we end the server
            )
        stdin, stdout = self._server.stdin, self._server.stdout
        assert stdin is not None
        assert stdout is not None
        with contextlib.suppress(BrokenPipeError):
            stdin.write(self._key + "\n")
            stdin.flush()
        ready, _, _ = select.select([stdout], [], [], _START_TIMEOUT_S)
        line = stdout.readline() if ready else ""
        if not line.strip().isdigit():
            raise self._unreachable("when its RPC server started")
        self._port = int(line)

    def _stop(self) -> None:
        """End the server and the session that it forked."""
        self._remote = None
        if self._server is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()
        for stream in (self._server.stdin, self._server.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._server = None

    def _connect(self) -> None:
        if self._server is None:
            raise self._unreachable("when connecting")
        try:
            with self.watched("connecting"):
                self._remote = rpc.connect("127.0.0.1", self._port, self._key)
                self._remote.get_function(START_THREADS)(self.device.threads)
            self._material.clear()
        except Exception as failure:
            raise self._unreachable("when connecting") from failure

    @contextlib.contextmanager
    def watched(self, what: str) -> Iterator[None]:
        """Bound a remote call in time: one that hangs loses its server, and fails like one that crashed."""

        def kill() -> None:
            if self._server is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._server.pid, signal.SIGKILL)

        watchdog = threading.Timer(_CALL_TIMEOUT_S, kill)
        watchdog.daemon = True
        watchdog.name = f"watchdog: {what}"
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()

    def _unreachable(self, when: str) -> DeviceUnreachableError:
        log = ""
        if self._folder is not None and (path := Path(self._folder.name) / "server.log").exists():
            log = " ".join(path.read_text(errors="replace").split())[-300:]
        return DeviceUnreachableError(
            f"device {self.device.name} did not answer {when}; the same command, without --fresh, continues"
            + (f" (its log ends: {log})" if log else "")
        )


class Library:
    """A compiled library on the device: Relax functions to run and time, or kernels to time."""

    def __init__(self, session: Session, module: Any) -> None:
        self.session, self._module = session, module
        self._remote = session._remote

    @cached_property
    def _machine(self) -> Any:
        return relax.VirtualMachine(self._module, self._remote.cpu())

    def run(self, inputs: Sequence[Array], function: str = "main") -> tuple[Array, ...]:
        """Run a Relax function once; return its outputs.

        Raises:
            DeviceError: it fails on the device.
        """
        try:
            with self.session.watched("running a function"):
                self._machine.set_input(function, *(self._tensor(array) for array in inputs))
                self._machine.invoke_stateful(function)
                outputs = self._machine.get_outputs(function)
        except Exception as failure:
            if not self.session.alive():
                raise self.session._unreachable(f"while {function!r} ran") from failure
            raise DeviceError(
                f"running {function!r} on {self.session.device.name} failed: {last_line(failure)}"
            ) from failure
        outputs = outputs if isinstance(outputs, Sequence) else [outputs]
        return tuple(output.numpy() for output in outputs)

    def run_kernel(self, kernel: str, parameters: Sequence[Array], wanted: Sequence[int]) -> tuple[Array, ...]:
        """Run one kernel once; return the parameters at the `wanted` positions as they are afterwards.

        Raises:
            DeviceError: it fails on the device.
        """
        try:
            with self.session.watched(kernel):
                tensors = [self._tensor(array) for array in parameters]
                self._module[kernel](*tensors)
                return tuple(tensors[i].numpy() for i in wanted)
        except Exception as failure:
            raise DeviceError(
                f"running {kernel!r} on {self.session.device.name} failed: {last_line(failure)}"
            ) from failure

    def times_kernels(self, function: str) -> bool:
        """Whether it was built with the sister of `function` that `kernel_times` runs."""
        return bool(self._machine.module.implements_function(function + TIMED))

    def kernel_times(self, function: str, inputs: Sequence[Array]) -> Array:
        """Run the sister of `function` that reads the clock between kernels (`tvm_passes.plan_sequence`).

        Returns:
            int64 nanoseconds of shape (runs, kernels + 1).

        Raises:
            DeviceError: it fails on the device, or the library was built without it.
        """
        return self.run(inputs, function + TIMED)[-1]

    def function_evaluator(self, function: str, inputs: Sequence[Array]) -> Evaluator:
        """Return what times a Relax function on fixed inputs: (number, repeat) -> seconds per run."""
        self._machine.set_input(function, *(self._tensor(array) for array in inputs))

        def evaluate(number: int, repeat: int) -> Sequence[float]:
            evaluator = self._machine.time_evaluator(
                "invoke_stateful", self._remote.cpu(), number=number, repeat=repeat
            )
            with self.session.watched(function):
                return list(evaluator(function).results)

        return evaluate

    def kernel_evaluator(self, kernel: str, parameters: Sequence[tuple[tuple[int, ...], str]]) -> Evaluator:
        """Return what times one kernel on random inputs: (number, repeat) -> seconds per run."""
        arguments = [self.session.material(i, shape, dtype) for i, (shape, dtype) in enumerate(parameters)]

        def evaluate(number: int, repeat: int) -> Sequence[float]:
            evaluator = self._module.time_evaluator(kernel, self._remote.cpu(), number=number, repeat=repeat)
            with self.session.watched(kernel):
                return list(evaluator(*arguments).results)

        return evaluate

    def _tensor(self, array: Array) -> Any:
        return tvm.runtime.tensor(array, self._remote.cpu())


def measure(
    session: Session, evaluators: Mapping[str, Callable[[], Evaluator]], effort: Effort = Effort()
) -> dict[str, Measurement]:
    """Time several things interleaved, round after round.

    Args:
        session: Where they run.
        evaluators: Name -> what prepares its evaluator (it may fail, for that one alone).
        effort: How much.

    Returns:
        A measurement each; one that failed holds the reason. When it takes the session with it, the others fail with
        `LOST`: they must be prepared and measured again.
    """
    ready: dict[str, Evaluator] = {}
    numbers: dict[str, int] = {}
    samples: dict[str, list[float]] = {name: [] for name in evaluators}
    errors: dict[str, str] = {}
    for name in list(evaluators) * effort.rounds:
        if name in errors:
            continue
        try:
            wanted = effort.samples
            if name not in ready:
                ready[name] = evaluators[name]()
                first = ready[name](1, min(3, wanted))
                numbers[name] = max(1, int(_SAMPLE_S / max(min(first), 1e-7)))
                if numbers[name] == 1:  # these are samples already; slow variants are many, and take most of the time
                    samples[name] += first
                    wanted -= len(first)
            if wanted:
                samples[name] += ready[name](numbers[name], wanted)
        except Exception as failure:  # whatever the code under test does to the device is data
            errors[name] = last_line(failure)
            if not session.alive():
                errors |= {other: f"{LOST} when {name} ran" for other in evaluators if other not in errors}
                break
    conditions = session.conditions()
    return {
        name: Measurement((), conditions, errors[name])
        if name in errors or not samples[name]
        else Measurement(tuple(samples[name]), conditions)
        for name in evaluators
    }
