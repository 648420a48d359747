"""Run a compiled model in this process: numpy arrays in, numpy arrays out."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from device_targets import host
from device_targets.needs import check_needs
from device_targets.threads import start_threads
from gos_adapt.errors import ConfigError, DeviceError, last_line
from gos_adapt.model.model import Model, TensorSpec
from tvm_passes.compat import relax, tvm

Array = np.ndarray[Any, Any]
MAX_DESCRIPTION_BYTES = 2**20


@dataclass(frozen=True)
class Interface:
    """What a compiled model takes and gives: the content of ``model.json``."""

    name: str
    target: str
    threads: int
    batch: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def of(cls, model: Model, target: str, threads: int, batch: int) -> Interface:
        """Describe `model`, compiled for `target` at one batch size."""
        return cls(model.name, target, threads, batch, model.inputs, model.outputs)

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``model.json``; shapes are those at this batch size."""
        form = {"schema": 1} | asdict(self)
        for side in ("inputs", "outputs"):
            form[side] = [
                {"name": spec.name, "shape": list(spec.at_batch(self.batch)), "dtype": spec.dtype}
                for spec in getattr(self, side)
            ]
        return form

    @classmethod
    def from_json(cls, form: Any) -> Interface:
        """Inverse of `to_json`.

        Raises:
            ConfigError: it is not the description of a compiled model.
        """
        try:
            specs = {
                side: tuple(
                    TensorSpec(str(spec["name"]), tuple(map(int, spec["shape"])), str(spec["dtype"]))
                    for spec in form[side]
                )
                for side in ("inputs", "outputs")
            }
            return cls(str(form["name"]), str(form["target"]), int(form["threads"]), int(form["batch"]), **specs)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"model.json does not describe a compiled model ({error}); compile the model again"
            ) from error


class CompiledModel:
    """A compiled model, loaded; call it with the model's inputs in order."""

    def __init__(self, interface: Interface, machine: Any) -> None:
        self.interface = interface
        self._machine = machine

    def __call__(self, *arrays: Array) -> Array | tuple[Array, ...]:
        """Run the model.

        Args:
            arrays: One array per input, of the shapes in `interface`.

        Returns:
            An array, or a tuple of them when the model has several outputs.

        Raises:
            ConfigError: an array has another shape or count than the model takes.
        """
        specs = self.interface.inputs
        if len(arrays) != len(specs):
            raise ConfigError(f"{self.interface.name} takes {len(specs)} inputs, got {len(arrays)}")
        for spec, array in zip(specs, map(np.asarray, arrays), strict=True):
            if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
                raise ConfigError(f"input {spec.name!r} of {self.interface.name} takes {spec.dtype}, got {array.dtype}")
            if array.shape != spec.shape:
                raise ConfigError(
                    f"input {spec.name!r} of {self.interface.name} takes shape {spec.shape}, got {array.shape}; "
                    "compile with another --batch for another batch size"
                )
        values = [
            tvm.runtime.tensor(np.asarray(array, spec.dtype, order="C"))
            for spec, array in zip(specs, arrays, strict=True)
        ]
        result = self._machine["main"](*values)
        if hasattr(result, "numpy"):
            output: Array = result.numpy()
            return output
        return tuple(value.numpy() for value in result)


def load_compiled(path: Path | str, *, tie_threads: bool = False) -> CompiledModel:
    """Load a compiled model.

    Args:
        path: ``model.so``, or the folder that holds it; ``model.json`` must lie beside it, and says how many threads
            TVM may use in this process (unless ``TVM_NUM_THREADS`` is set, or TVM's thread pool runs already). A
            compiled library is code: load only what you trust.
        tie_threads: Tie each thread to a core, the calling one included, as they are where latencies are measured. Left
            free, two threads that meet on one core can take twice as long. The calling thread, and what it starts from
            then on, stays on its core: for a process that does nothing else.

    Raises:
        ConfigError: there is no compiled model.
        DeviceError: this machine cannot run it: another architecture, or a CPU without what its code uses.
    """
    library = Path(path) / "model.so" if Path(path).is_dir() else Path(path)
    description = library.with_name("model.json")
    try:
        with description.open("rb") as file:
            content = file.read(MAX_DESCRIPTION_BYTES + 1)
        if len(content) > MAX_DESCRIPTION_BYTES:
            raise ConfigError(f"{description} is larger than {MAX_DESCRIPTION_BYTES} bytes, which no description is")
        interface = Interface.from_json(json.loads(content))
    except OSError as error:
        raise ConfigError(
            f"no compiled model at {path}: {description.name} cannot be read ({error.strerror})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{description} is not JSON ({error}); compile the model again") from error
    check_needs(library, host())
    # Read by TVM when its thread pool starts, with the first parallel kernel. Left alone, TVM would take half of the
    # cores and tie the caller's thread, and every process it starts from then on, to one of them.
    threads = max(1, min(interface.threads, len(os.sched_getaffinity(0))))
    os.environ.setdefault("TVM_NUM_THREADS", str(threads))
    os.environ.setdefault("TVM_BIND_THREADS", "1" if tie_threads else "0")
    if tie_threads:
        start_threads(threads)
    try:
        machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
    except Exception as failure:
        raise DeviceError(
            f"{library} cannot be loaded on this machine: {last_line(failure)}; compile the model for it"
        ) from failure
    return CompiledModel(interface, machine)
