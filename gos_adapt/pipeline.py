"""The whole way, as a list: load, profile, select, search, splice, compile, verify, time, report.

Each function here is one use of the product; each stage leaves its artefact in the run folder before the next begins.
"""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import onnx

from device_targets import DEVICES
from device_targets.reach import HERE, Reach
from device_targets.session import session_with
from gos_adapt import __version__, baselines
from gos_adapt.adaptation import ARRAYS_FILE, JSON_FILE, Adaptation
from gos_adapt.bench import ADAPTED, FP32, INT8, ORIGINAL, bench, compare
from gos_adapt.budget import Budget
from gos_adapt.environment import read_environment
from gos_adapt.errors import ConfigError, Rejection, RunFolderError, VerificationError
from gos_adapt.interleave import duration_s
from gos_adapt.model.load import load_model, load_module
from gos_adapt.model.random_array import random_samples
from gos_adapt.model.sites import find_sites
from gos_adapt.progress import Progress, Silent
from gos_adapt.report.html import write_report
from gos_adapt.result import (
    Accuracy,
    DeviceSummary,
    Latencies,
    Measured,
    ModelSummary,
    Options,
    Result,
)
from gos_adapt.run_folder import RunFolder, replace_atomic, write_atomic
from gos_adapt.stage_times import StageTimes
from gos_adapt.strategies import STRATEGIES, Strategy
from gos_adapt.strategies.setting import Adapted, Request, graph_key
from gos_adapt.summary import (
    count_macs,
    count_parameters,
    metric_unit,
    summarise_profile,
    summarise_searches,
    summarise_sites,
)
from gos_adapt.task import Task, evaluate_onnx, load_task
from gos_adapt.verify import INPUTS, verify_function, verify_interface, verify_numerics
from gos_adapt.workbench import Workbench
from tvm_passes.build import build_model, target_of
from tvm_passes.compiled import Interface
from tvm_passes.dump_phases import dump_phases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from device_targets import Device
    from device_targets.session import Session
    from gos_adapt.config import AdaptConfig
    from gos_adapt.model.model import Model, Replacement
    from gos_adapt.profiling.profile import KernelLatency, Profile
    from gos_adapt.result import Verification
    from tvm_passes.build import Built
    from tvm_passes.pipeline import Kernel

__all__ = ["adapt", "bench", "compile_to", "profile_model"]

PROFILED_MODELS, SCORED_MODELS, TIMED_MODELS = 2, 3, 5
"""The original and the adapted; on the test split ONNX Runtime's int8 too; beside them its fp32 in two forms."""
FIXED_S = 8.0
"""For all else of delivery: the int8 baseline, the report."""
RESULT, REPORT = "result.json", "report.html"
COMPILED = ("model.so", "model.json")
DELIVERED = ("adapted.onnx", JSON_FILE, ARRAYS_FILE, *COMPILED)


def adapt(config: AdaptConfig, progress: Progress | None = None) -> Result:
    """Adapt a model to a device.

    Args:
        config: What is asked for.
        progress: Where to say what happens.

    Returns:
        What was found; the artefacts are in ``config.folder``.

    Raises:
        AdaptError: see `gos_adapt.errors`; each says what to do next.
    """
    progress = progress or Silent()
    model = _model_of(config)
    task = _task(config, model)
    device = DEVICES[config.target]()
    session = session_with(device, config.reach, progress.note)
    with (
        RunFolder.open(config.folder, _identity(config, model, task, device), config.policy) as folder,
        progress.log_to(folder.claim("log.txt")),
        session,
        Workbench(session, progress) as workbench,
    ):
        progress.note(_opening(model, device, task))
        stages = StageTimes(folder.journal)
        request = Request(
            epsilon=config.epsilon,
            max_sites=config.max_sites,
            seed=config.seed,
            target_latency_s=config.target_latency_s,
            speed_up=config.speed_up,
            train_all=config.train_all,
            also_minimise=config.also_minimise,
        )
        budget = Budget(config.budget_s, lambda: folder.elapsed_s)
        if config.budget_s is not None:
            progress.budget(budget.left_s)
        keep = partial(_keep, folder, model)
        strategy = STRATEGIES[config.strategy_for(task)](
            model, task, request, workbench, folder, progress, budget.search_s, keep
        )
        with stages.time("profile, select, search, splice"):
            budget.reserve(_delivery_s(strategy, model, task, device))
            adapted = strategy.run()
        for finding in (RESULT, REPORT):  # of an earlier process of this run: what follows replaces it
            folder.remove(finding)
        with stages.time("compile"):
            _write_models(folder, model, adapted.model, adapted.replacements)
            built = _compile(adapted.model, workbench, folder)
        with stages.time("verify"):
            try:
                verification = _verify(model, adapted.model, built, task, session)
            except VerificationError:
                for artefact in DELIVERED:
                    folder.remove(artefact)
                raise
            int8 = _int8(model, task, folder, progress)
            with progress.stage("accuracy on the test split"):
                accuracy = _accuracy(model, adapted.model, int8, task, device)
        with stages.time("measure"):
            # an hour ago the machine may have been another: what is compared is profiled in turns
            before, after = strategy.profiles("original and adapted", model, adapted.model)
            latencies = _latencies(model, built, int8, workbench, progress)
        result = Result(
            model=ModelSummary(model.name, model.key, model.inputs, model.outputs),
            device=DeviceSummary(device.name, device.kind, str(target_of(device)), device.threads, device.memory_bytes),
            options=Options(
                epsilon=config.epsilon,
                max_sites=config.max_sites,
                budget_s=config.budget_s,
                seed=config.seed,
                strategy=config.strategy_for(task),
                target_latency_s=config.target_latency_s,
                speed_up=config.speed_up,
                train_all=config.train_all,
                also_minimise=config.also_minimise,
            ),
            environment=read_environment(),
            accuracy=accuracy,
            latency=latencies,
            parameters=count_parameters(model, adapted.model),
            macs=count_macs(adapted),
            profile=summarise_profile(before),
            sites=summarise_sites(adapted, before, after),
            search=summarise_searches(adapted.steps, task.metric if task else None),
            stages_s=stages.seconds,
            verification=verification,
            notes=_notes(adapted, before.kernels),
        )
        folder.save_json(RESULT, result.to_json())
        folder.save_with(REPORT, partial(write_report, result))
        progress.detail(result.verdict)
        return result


def profile_model(model: Path, target: str, out: Path | None, progress: Progress, reach: Reach = HERE) -> Profile:
    """Time every kernel of a model on a device, and the whole.

    Raises:
        AdaptError: see `gos_adapt.errors`.
    """
    loaded, device = load_model(model), DEVICES[target]()
    with (
        session_with(device, reach, progress.note) as session,
        Workbench(session, progress) as workbench,
        progress.stage("profile"),
    ):
        profile = workbench.profile(loaded, find_sites(loaded))
    if out is not None:
        folder = _folder(out)
        write_atomic(folder / "profile.json", _json({"model": loaded.name, "device": target} | profile.to_json()))
    return profile


def compile_to(
    model: Path,
    target: str,
    out: Path,
    batch: int,
    progress: Progress,
    *,
    dump: bool = False,
    reach: Reach = HERE,
) -> None:
    """Compile a model as it is into ``out/model.so`` with ``out/model.json``.

    Args:
        model: The file.
        target: Name of the device.
        out: Folder.
        batch: Samples in one call.
        progress: Where to say what happens.
        dump: Also write the module after each phase of the compiler to ``out/phases``.
        reach: Where the device is; one that is nowhere gets schedules that are guessed.

    Raises:
        AdaptError: see `gos_adapt.errors`.
    """
    loaded, device = load_model(model), DEVICES[target]()
    if batch > 1 and not _has_dynamic_batch(loaded):
        raise ConfigError(f"{model} has no dynamic batch axis; leave --batch out, or export it with one")
    folder = _folder(out)
    path = folder / "model.so"
    with dump_phases(_folder(out / "phases")) if dump else nullcontext():
        if connected := device.local or reach.place is not None:
            with session_with(device, reach, progress.note) as session, Workbench(session, progress) as workbench:
                built = _built(partial(replace_atomic, path), path, partial(workbench.build, loaded, batch=batch))
        else:
            with progress.stage("compile"):
                built = _built(partial(replace_atomic, path), path, partial(build_model, loaded.proto, device, batch))
    if not connected:
        progress.note(f"schedules are guesses: {device.name} is not connected, so nothing was timed on it")
    for note in _slow(built.kernels):
        progress.note(note)
    interface = Interface.of(loaded, target, device.threads, batch)
    write_atomic(folder / "model.json", _json(interface.to_json()))


def _model_of(config: AdaptConfig) -> Model:
    if isinstance(config.model, Path):
        return load_model(config.model)
    return load_module(config.model, config.example_inputs)


def _task(config: AdaptConfig, model: Model) -> Task | None:
    if isinstance(config.task, Task):
        config.task.check(model.inputs, model.outputs)
        return config.task
    if config.task is None:
        return None
    if not _has_dynamic_batch(model):
        raise ConfigError(f"a task needs a model with a dynamic batch axis, {model.name} has none; export it with one")
    return load_task(config.task, model.inputs, model.outputs)


def _has_dynamic_batch(model: Model) -> bool:
    return all(isinstance(spec.shape[0], str) if spec.shape else False for spec in model.inputs)


def _identity(config: AdaptConfig, model: Model, task: Task | None, device: Device) -> dict[str, Any]:
    """Everything that changes the result, but for the budget: given more time, a run goes on after its last step."""
    return {
        "version": __version__,
        "model": model.key,
        "task": task.key if task else None,
        "target": f"{device.name}: {target_of(device)}",
        "threads": device.threads,
        "memory_bytes": device.memory_bytes,
        "epsilon": config.epsilon,
        "max_sites": config.max_sites,
        "strategy": config.strategy_for(task),
        "target_latency_s": config.target_latency_s,
        "speed_up": config.speed_up,
        "train_all": config.train_all,
        "also_minimise": list(config.also_minimise),
        "seed": config.seed,
    }


def _delivery_s(strategy: Strategy, model: Model, task: Task | None, device: Device) -> float:
    """Guess, once in a run, what delivery will take: from profiling now, and from scoring a small split."""
    journal = strategy.folder.journal
    if "delivery" not in journal:
        journal.put("delivery", _guessed_s(strategy, model, task, device))
    guessed: float = journal.get("delivery")
    return guessed


def _guessed_s(strategy: Strategy, model: Model, task: Task | None, device: Device) -> float:
    start = time.monotonic()
    (profile,) = strategy.profiles("original", model)
    profiled_s = time.monotonic() - start - strategy.workbench.tuning_s  # what is delivered is tuned by then
    guessed_s = PROFILED_MODELS * profiled_s + TIMED_MODELS * duration_s(profile.whole.median_s) + FIXED_S
    if task is None:
        return guessed_s
    start = time.monotonic()
    evaluate_onnx(model.original.SerializeToString(), task.calibration, task.metric, threads=device.threads)
    scored_s = (time.monotonic() - start) * task.test.n / task.calibration.n
    return guessed_s + SCORED_MODELS * scored_s


def _opening(model: Model, device: Device, task: Task | None) -> str:
    data = (
        f"task {task.name}"
        if task
        else "no task: only rewrites that keep the function within numerical tolerance are made"
    )
    return f"{model.name} for {device.name} ({device.description}); {data}"


def _keep(folder: RunFolder, model: Model, adapted: Model, replacements: Sequence[Replacement]) -> None:
    """Write what is the best so far, so that it is on disk whatever comes.

    A run that goes on repeats its history: what was the best once does not replace what has been better since. What
    was compiled and reported of that would not belong to what is written now.
    """
    key = f"kept:{graph_key(adapted)}"
    if key not in folder.journal:
        for name in (RESULT, REPORT, *COMPILED):
            folder.remove(name)
        _write_models(folder, model, adapted, replacements)
        folder.journal.put(key, True)


def _write_models(folder: RunFolder, model: Model, adapted: Model, replacements: Sequence[Replacement]) -> None:
    """Write the ONNX models and what was replaced by what."""
    adaptation = Adaptation.of(model, replacements)
    folder.save_bytes("original.onnx", model.original.SerializeToString())
    folder.save_bytes("adapted.onnx", adapted.proto.SerializeToString())
    folder.save_arrays(ARRAYS_FILE, adaptation.arrays())
    folder.save_json(JSON_FILE, adaptation.to_json())


def _compile(model: Model, workbench: Workbench, folder: RunFolder) -> Built:
    path = folder.claim("model.so")
    built = _built(partial(folder.save_with, path.name), path, partial(workbench.build, model))
    folder.save_json("model.json", Interface.of(model, workbench.device.name, workbench.device.threads, 1).to_json())
    return built


def _built(save: Callable[[Callable[[Path], object]], object], path: Path, build: Callable[[Path], Built]) -> Built:
    """Build the library `path`, which `save` lets appear when it is complete."""
    found: list[Built] = []
    save(lambda unfinished: found.append(build(unfinished)))
    return replace(found[0], path=path)


def _slow(kernels: Iterable[Kernel | KernelLatency]) -> list[str]:
    """Name the kernels that no schedule rule took."""
    names = sorted({kernel.name for kernel in kernels if kernel.rule.startswith("none")})
    return [f"No schedule rule took these kernels, which are therefore slow: {', '.join(names)}."] if names else []


def _verify(model: Model, adapted: Model, built: Built, task: Task | None, session: Session) -> Verification:
    """Check interface and numbers: on the task's own inputs where there are any, on random ones otherwise."""
    verify_interface(adapted)
    if task is None:
        inputs = [list(sample.values()) for sample in random_samples(model, INPUTS)]
        verify_function(model, adapted, inputs)
    else:
        samples, _ = task.selection.part(slice(0, INPUTS)).arrays()
        inputs = [[sample[None]] for sample in samples]
    return verify_numerics(adapted, session.load(built.path).run, inputs)


def _int8(model: Model, task: Task | None, folder: RunFolder, progress: Progress) -> onnx.ModelProto | Rejection:
    """Return the int8 baseline, made once for a run."""
    if (kept := folder.load_bytes("baseline_int8.onnx")) is not None:
        return onnx.load_model_from_string(kept)
    if task is None:
        samples = random_samples(model, baselines.CALIBRATION_SAMPLES)
    else:
        every = -(-task.calibration.n // baselines.CALIBRATION_SAMPLES)
        inputs, _ = task.calibration.part(slice(None, None, every)).arrays()
        samples = [{model.inputs[0].name: sample[None]} for sample in inputs]
    with progress.stage("int8 baseline"), TemporaryDirectory(prefix="adapt-") as scratch:
        quantized = baselines.quantize(model, samples, Path(scratch))
    if not isinstance(quantized, Rejection):
        folder.save_bytes("baseline_int8.onnx", quantized.SerializeToString())
    return quantized


def _accuracy(
    model: Model, adapted: Model, int8: onnx.ModelProto | Rejection, task: Task | None, device: Device
) -> Accuracy | None:
    """Score all three on the test split, which nothing has read before."""
    if task is None:
        return None
    unit = metric_unit(task.metric)

    def value(proto: onnx.ModelProto) -> Measured:
        score = evaluate_onnx(proto.SerializeToString(), task.test, task.metric, threads=device.threads)
        return Measured(score.value, unit)

    return Accuracy(
        metric=task.metric.name,
        higher_is_better=task.metric.higher_is_better,
        split=task.test.name,
        n=task.test.n,
        original=value(model.original),
        adapted=value(adapted.proto),
        onnxruntime_int8=None if isinstance(int8, Rejection) else value(int8),
    )


def _latencies(
    model: Model, adapted: Built, int8: onnx.ModelProto | Rejection, workbench: Workbench, progress: Progress
) -> Latencies:
    with TemporaryDirectory(prefix="adapt-") as scratch:
        original = workbench.build(model, Path(scratch) / "original.so")
        entries = compare(model, {INT8: int8, ORIGINAL: original, ADAPTED: adapted}, workbench.session, progress)
    return Latencies(1, *(entries[name].latency for name in (ORIGINAL, ADAPTED, FP32, INT8)))


def _notes(adapted: Adapted, kernels: Iterable[KernelLatency]) -> tuple[str, ...]:
    notes = [*adapted.notes]
    if retrained := sum(replacement.retrained for replacement in adapted.replacements):
        notes.append(f"{retrained} operators stayed, their weights trained with the replacements.")
    notes += _slow(kernels)
    return tuple(notes)


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"cannot create {path}: {error.strerror}; give a writable folder with --out") from error
    return path


def _json(form: Any) -> bytes:
    return json.dumps(form, indent=2).encode() + b"\n"
