"""From ONNX to a library on disk: import, lower, generate code, link."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from gos_adapt.errors import ConfigError, ModelImportError, last_line
from tvm_passes.compat import GlobalVar, IRModule, PrimFunc, Target, mutator, relax, tvm
from tvm_passes.cpu_features import excess_features
from tvm_passes.frontend import import_onnx
from tvm_passes.link import link
from tvm_passes.object_files import ObjectFiles
from tvm_passes.pipeline import Fused, Kernel, Lowered, Parameter, fuse, schedule
from tvm_passes.schedule_kernels import Choose, guess
from tvm_passes.schedules import Cpu
from tvm_passes.subroutines import separate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx

    from device_targets import Device


@dataclass(frozen=True)
class Built:
    """A library on disk.

    Attributes:
        path: The shared library: every Relax function, and within it the kernels it calls.
        kernels: Kernel calls in the order they run, function by function.
        parameters: What each function takes.
    """

    path: Path
    kernels: tuple[Kernel, ...]
    parameters: Mapping[str, tuple[Parameter, ...]]


def prepare(proto: onnx.ModelProto, device: Device, batch: int) -> Fused:
    """Import a canonical model and run the half of the compiler that no measurement changes.

    Raises:
        ModelImportError: TVM cannot import or compile it.
    """
    module = import_onnx(proto, batch)
    with _as_import_error():
        return fuse(module, cpu_of(device))


def prepare_functions(protos: Mapping[str, onnx.ModelProto], device: Device, batch: int) -> Fused:
    """Prepare several operators, one function each, as they would run inside a model.

    Their functions take and return feature maps in blocked layout: `Built.parameters` says which shapes.

    Raises:
        ModelImportError: one of them cannot be imported or compiled.
    """
    joiner = _Joiner()
    for name, proto in protos.items():
        joiner.join(name, import_onnx(proto, batch))
    with _as_import_error():
        return fuse(joiner.builder_.get(), cpu_of(device), blocked_boundary=True)


def build(
    fused: Fused,
    device: Device,
    path: Path,
    choose: Choose = guess,
    timed_repeats: int = 0,
    objects: ObjectFiles | None = None,
) -> Built:
    """Schedule what was prepared and compile it into the library `path`.

    Args:
        fused: Result of `prepare` or `prepare_functions` for the same device.
        device: To compile for.
        path: The library.
        choose: Which variant of which kernel (`gos_adapt.tuning.Tuner.choose`).
        timed_repeats: Above 0: also compile the functions that time their own kernels (`PlanSequence`).
        objects: Kernels compiled before, and where new ones go; by default, all are compiled and none is kept.

    Raises:
        ModelImportError: TVM cannot compile it.
        ConfigError: it cannot be linked, or there is no room.
    """
    with _as_import_error():
        lowered = schedule(fused, cpu_of(device), choose, timed_repeats=timed_repeats)
    return export(lowered, device, path, objects)


def build_model(proto: onnx.ModelProto, device: Device, batch: int, path: Path, choose: Choose = guess) -> Built:
    """Compile a canonical model for `device` into the library `path`; its function is ``main``.

    Raises:
        ModelImportError: TVM cannot import or compile it.
        ConfigError: it cannot be linked.
    """
    return build(prepare(proto, device, batch), device, path, choose)


def build_default(proto: onnx.ModelProto, device: Device, batch: int, path: Path) -> Built:
    """Compile a canonical model as TVM does by itself, without any pass or schedule of ours: a baseline.

    TVM 0.27 makes one kernel per operator, fuses, and schedules nothing for a CPU (tvm.relax.backend.cpu_generic).

    Raises:
        ModelImportError: TVM cannot import or compile it.
    """
    return export(Lowered(import_onnx(proto, batch), ()), device, path)


def cpu_of(device: Device) -> Cpu:
    """Return what the schedules need to know of a device."""
    x86 = device.architecture == "x86_64"
    return Cpu(device.lanes, device.registers, device.threads, memory_operands=x86)


def target_of(device: Device) -> Target:
    """Return TVM's target of a device: its CPU (this machine's where ``mcpu`` is empty), less what it is without."""
    target: dict[str, Any] = dict(device.target)
    if not target["mcpu"]:
        target["mcpu"] = tvm.get_global_func("target.llvm_get_system_cpu")()
    if excess := excess_features(Target(target), device.features):
        target["mattr"] = [f"-{feature}" for feature in excess]
    return Target(target)


@contextmanager
def _as_import_error() -> Iterator[None]:
    try:
        yield
    except Exception as failure:  # a pass of TVM's or ours met what it does not know
        raise ModelImportError(f"the model could not be compiled: {last_line(failure)}") from failure


def export(lowered: Lowered, device: Device, path: Path, objects: ObjectFiles | None = None) -> Built:
    """Generate code for a module, and link it into the library `path`; see `build`.

    Raises:
        ModelImportError: TVM cannot generate code for it.
        ConfigError: there is no linker, or no room.
    """
    if objects is None:
        with TemporaryDirectory(prefix="adapt-") as folder, ObjectFiles(Path(folder)) as scratch:
            return export(lowered, device, path, scratch)
    target = target_of(device)
    separated = separate(lowered.module)
    compiling = objects.begin(separated.kernels, target)
    try:
        # Compiled, a call takes half a microsecond less than as bytecode.
        executable = relax.build(separated.module, target, exec_mode="compiled")
        kernels = [future.result() for future in compiling]
    except ConfigError:  # no room
        raise
    except Exception as failure:
        raise ModelImportError(f"TVM could not compile the model: {last_line(failure)}") from failure
    link(executable, target, path, kernels)
    return Built(path, lowered.kernels, lowered.parameters)


@mutator
class _Joiner(relax.PyExprMutator):  # type: ignore[misc]
    """Collect the ``main`` of several modules in one, under names of their own."""

    def __init__(self) -> None:
        super().__init__(IRModule({}))
        self.kernels: dict[str, GlobalVar] = {}

    def join(self, name: str, module: IRModule) -> None:
        self.kernels = {
            variable.name_hint: self.builder_.add_func(function, f"{name}_{variable.name_hint}")
            for variable, function in module.functions_items()
            if isinstance(function, PrimFunc)
        }
        main = self.visit_expr(module["main"])
        self.builder_.add_func(main.with_attr("global_symbol", name), name)

    def visit_global_var_(self, variable: GlobalVar) -> GlobalVar:
        return self.kernels.get(variable.name_hint, variable)
