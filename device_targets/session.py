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
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import relax

from device_targets.needs import check_needs
from device_targets.network_link import DirectLink, TrackerLink
from device_targets.reach import HERE, Reach, place_of
from device_targets.spawned_link import link_to_this_machine
from gos_adapt.errors import ConfigError, DeviceError, DeviceUnreachableError, last_line
from gos_adapt.quantities import Conditions, Measurement

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from device_targets.device import Device
    from device_targets.link import Connection, Link

Array = np.ndarray[Any, Any]
Evaluator = Callable[[int, int], Sequence[float]]

START_THREADS = "adapt.start_threads"
_BIG_CORES = 1  # tvm::runtime::threading::ThreadGroup::AffinityMode::kBig
_CALL_TIMEOUT_S, _SIGN_S = 300.0, 30.0
_LONGEST_PAUSE_S = 30.0
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


def session_with(device: Device, reach: Reach = HERE, waits: Callable[[str], None] = lambda _why: None) -> Session:
    """Return a session with a device, to be entered.

    Args:
        device: The device.
        reach: Where it is.
        waits: As `Session` has it.

    Raises:
        DeviceUnreachableError: nothing says where it is.
        ConfigError: it is this machine, and something says that it is elsewhere.
    """
    key = reach.key or device.name
    if device.local:
        if reach.place:
            raise ConfigError(f"{device.name} is this machine: for a board at {reach.place} name it with --target")
        return Session(device)
    if reach.place is None:
        raise DeviceUnreachableError(
            f"nothing says where {device.name} is: name its address with --address HOST:PORT, or a tracker with "
            f"--tracker HOST:PORT ('adapt board build {device.name}' makes what it runs); "
            f"'adapt compile MODEL --target {device.name} --out DIR' compiles for it"
        )
    place = place_of(reach.place)
    link = DirectLink(*place, key) if reach.address else TrackerLink(*place, key)
    return Session(device, link, reach.patience_s, waits)


class Session:
    """A session with one device, begun anew whenever it is lost; a context manager.

    Args:
        device: The device.
        link: The way to it; for this machine, one to an agent of its own.
        patience_s: Seconds to wait for a device that is gone, such as a board that was unplugged.
        waits: Told, each time that a device is waited for, how it cannot be reached.
    """

    def __init__(
        self,
        device: Device,
        link: Link | None = None,
        patience_s: float = 0.0,
        waits: Callable[[str], None] = lambda _why: None,
    ) -> None:
        self.device = device
        self._given, self._patience_s, self._waits = link, patience_s, waits
        self._link: Link | None = None
        self._connection: Connection | None = None
        self._uploads = 0
        self._material: dict[tuple[int, tuple[int, ...], str], Any] = {}

    def __enter__(self) -> Session:
        if self._given is None and not self.device.local:
            raise DeviceUnreachableError(f"there is no link to {self.device.name}, and it is not this machine")
        self._link = self._given or link_to_this_machine(self.device)
        try:
            self._connect()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._disconnect()
        if self._link is not None:
            self._link.close()
            self._link = None

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
        return self._connection

    @property
    def _remote(self) -> Any:
        if self._connection is None:
            raise self._unreachable("as there is no session with it")
        return self._connection.remote

    def conditions(self) -> Conditions:
        """What measurements taken now are taken under."""
        return Conditions(
            self.device.name, self.device.threads, datetime.now(UTC).isoformat(timespec="seconds"), _METHOD
        )

    def alive(self) -> bool:
        """Whether the device answers."""
        if self._connection is None:
            return False
        try:
            with self.watched("a sign of life", _SIGN_S):
                self._remote.get_function("runtime.GetDeviceAttr")
        except Exception:  # TVM raises whatever the transport raises; the answer is the same
            return False
        return True

    def ensure_alive(self) -> None:
        """Begin a new session after a crash of the code under test, or once a device that was gone is back.

        Raises:
            DeviceUnreachableError: it is not back in time.
        """
        if not self.alive():
            self._connect()

    def _connect(self) -> None:
        if self._link is None:
            raise DeviceError(f"the session with {self.device.name} is closed; open it with 'with Session(device):'")
        self._disconnect()
        end = time.monotonic() + self._patience_s
        pause_s = 1.0
        while self._connection is None:
            try:
                self._connection = self._link.connect()
                with self.watched("starting threads", _SIGN_S):
                    self._start_threads()
            except Exception as failure:
                self._disconnect()
                if isinstance(failure, DeviceError):  # it answers, and waiting changes nothing
                    raise
                if time.monotonic() + pause_s > end:
                    raise self._unreachable("when connecting", failure) from failure
                self._waits(last_line(failure))
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _start_threads(self) -> None:
        """Start TVM's threads there, by our agent each on a core of its own; TVM's own server cannot tie them."""
        try:
            start = self._remote.get_function(START_THREADS)
        except AttributeError:
            start = partial(self._remote.get_function("runtime.config_threadpool"), _BIG_CORES)
        start(self.device.threads)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.cut()  # what was loaded may live longer, and would keep others waiting
        self._connection = None
        self._material.clear()

    @contextlib.contextmanager
    def watched(self, what: str, limit_s: float = _CALL_TIMEOUT_S) -> Iterator[None]:
        """Bound a remote call in time: one that hangs loses its session, and fails like one that crashed."""
        watchdog = threading.Timer(limit_s, self._connection.cut if self._connection else lambda: None)
        watchdog.daemon = True
        watchdog.name = f"watchdog: {what}"
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()

    def _unreachable(self, when: str, failure: Exception | None = None) -> DeviceUnreachableError:
        said = self._link.said() if self._link else ""
        return DeviceUnreachableError(
            f"device {self.device.name} did not answer {when}"
            + (f" ({last_line(failure)})" if failure else "")
            + "; the same command, without --fresh, continues"
            + (f" (its log ends: {said})" if said else "")
        )


class Library:
    """A compiled library on the device: Relax functions to run and time, or kernels to time."""

    def __init__(self, session: Session, module: Any) -> None:
        self.session, self._module = session, module
        self._remote, self._connection = session._remote, session.connection

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
                return tuple(each.numpy() for each in (outputs if isinstance(outputs, Sequence) else [outputs]))
        except Exception as failure:
            if not self.session.alive() or self.session.connection is not self._connection:
                raise self.session._unreachable(f"while {function!r} ran") from failure
            raise DeviceError(
                f"running {function!r} on {self.session.device.name} failed: {last_line(failure)}"
            ) from failure

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
        with self.session.watched(function):
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
        with self.session.watched(function):
            self._machine.set_input(function, *(self._tensor(array) for array in inputs))

        def evaluate(number: int, repeat: int) -> Sequence[float]:
            with self.session.watched(function):
                evaluator = self._machine.time_evaluator(
                    "invoke_stateful", self._remote.cpu(), number=number, repeat=repeat
                )
                return list(evaluator(function).results)

        return evaluate

    def kernel_evaluator(self, kernel: str, parameters: Sequence[tuple[tuple[int, ...], str]]) -> Evaluator:
        """Return what times one kernel on random inputs: (number, repeat) -> seconds per run."""
        with self.session.watched(kernel):
            arguments = [self.session.material(i, shape, dtype) for i, (shape, dtype) in enumerate(parameters)]

        def evaluate(number: int, repeat: int) -> Sequence[float]:
            with self.session.watched(kernel):
                evaluator = self._module.time_evaluator(kernel, self._remote.cpu(), number=number, repeat=repeat)
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
