"""Our kernels against ONNX Runtime's, network by network: how fast, how exact, and what finding them took.

    python benchmarks/kernels.py [--threads N] [--models resnet20 resnet56 ...] [--store FILE] [--json]

Latencies are at batch 1, in milliseconds, of 600 samples taken in turns; a ratio is ours over ONNX Runtime's fp32. The
gap is the sum of our kernels, timed in place, over the whole. Tuning counts what this run had to tune (give a new
--store to tune everything), candidates are all that the store holds of the network's kernels, and a compile finds every
kernel in the store. The trained networks are those of shared/data beside the repository; resnet18 and mobilenetv3_large
have random weights (`networks.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from networks import mobilenetv3_large, resnet18

from device_targets import DEVICES
from device_targets.session import Session
from gos_adapt.bench import FP32, OURS, Entry, compare, with_threads
from gos_adapt.cache_folder import cache_folder
from gos_adapt.environment import read_environment
from gos_adapt.errors import AdaptError, DeviceError
from gos_adapt.json_form import encode
from gos_adapt.model.load import load_model, load_module
from gos_adapt.progress import Silent
from gos_adapt.tuning import open_store
from gos_adapt.workbench import Workbench
from tvm_passes.build import prepare

if TYPE_CHECKING:
    from collections.abc import Callable

    from gos_adapt.model.model import Model

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TRAINED = {
    "resnet8": "mlperf_tiny/resnet8_cifar10.onnx",
    "resnet20": "cifar10_resnet/resnet20_cifar10.onnx",
    "resnet56": "cifar10_resnet/resnet56_cifar10.onnx",
    "mobilenet_v2": "imagenet_models/mobilenet_v2_1.0_224.onnx",
    "mobilenetv1_025_vww96": "mlperf_tiny/mobilenetv1_025_vww96.onnx",
    "mobilenet_v1_0.25_128": "imagenet_models/mobilenet_v1_0.25_128.onnx",
    "dscnn_kws12": "mlperf_tiny/dscnn_kws12.onnx",
    "ad_autoencoder": "mlperf_tiny/ad_autoencoder.onnx",
}
RANDOM: dict[str, Callable[[], torch.nn.Module]] = {"resnet18": resnet18, "mobilenetv3_large": mobilenetv3_large}
HEAD = (
    f"{'':22}{'ours ms':>9}{'median':>9}{'ORT ms':>9}{'median':>9}{'ratio':>7}{'median':>8}{'deviation':>11}{'gap':>8}"
    f"{'tuning s':>10}{'candidates':>12}{'compile s':>11}"
)


@dataclass(frozen=True)
class Row:
    """What was found of one network."""

    ours: Entry
    onnxruntime: Entry
    gap: float | None
    tuning_s: float
    candidates: int
    compile_s: float

    @property
    def ratio_best(self) -> float:
        """By best samples."""
        return self.ours.latency.best_s / self.onnxruntime.latency.best_s

    @property
    def ratio_median(self) -> float:
        """By medians."""
        return self.ours.latency.median_s / self.onnxruntime.latency.median_s

    def text(self) -> str:
        """Return it under `HEAD`."""
        ours, theirs = self.ours.latency, self.onnxruntime.latency
        deviation = "-" if self.ours.deviation is None else f"{self.ours.deviation:.1e}"
        gap = "-" if self.gap is None else f"{self.gap:+.1%}"
        return (
            f"{ours.best_s * 1e3:9.4f}{ours.median_s * 1e3:9.4f}{theirs.best_s * 1e3:9.4f}{theirs.median_s * 1e3:9.4f}"
            f"{self.ratio_best:7.2f}{self.ratio_median:8.2f}{deviation:>11}{gap:>8}"
            f"{self.tuning_s:10.1f}{self.candidates:12d}{self.compile_s:11.2f}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        ratio = {"best": self.ratio_best, "median": self.ratio_median}
        return {
            "ours": encode(self.ours),
            "onnxruntime_fp32": encode(self.onnxruntime),
            "ratio": ratio,
            "gap": self.gap,
            "tuning_s": self.tuning_s,
            "candidates": self.candidates,
            "compile_s": self.compile_s,
        }


def main() -> int:
    """Print the table; return the exit code."""
    options = _options()
    show = (lambda *_: None) if options.json else (lambda *words: print(*words, flush=True))
    try:
        rows = _measure_all(options, show)
    except AdaptError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    best, median = ([getattr(row, ratio) for row in rows.values()] for ratio in ("ratio_best", "ratio_median"))
    summary = {
        "geometric_mean": {"best": geometric_mean(best), "median": geometric_mean(median)},
        "worst": {"best": max(best), "median": max(median)},
    }
    for name, ratio in summary.items():
        show(f"{name.replace('_', ' '):22}{'':36}{ratio['best']:7.2f}{ratio['median']:8.2f}")
    if options.json:
        forms = {name: row.to_json() for name, row in rows.items()}
        print(json.dumps({"models": forms, **summary, "environment": encode(read_environment())}, indent=2))
    return 0


def _measure_all(options: argparse.Namespace, show: Callable[..., None]) -> dict[str, Row]:
    device = with_threads(DEVICES["host"](), options.threads)
    show(f"{device.description}; {device.threads} threads; load {read_environment().load}")
    show(HEAD)
    rows = {}
    store = options.store or cache_folder() / "tuning.sqlite"
    with Session(device) as session, Workbench(session, store=store) as workbench:
        for name in options.models:
            rows[name] = _measure(_load(name), workbench, store)
            show(f"{name:22}{rows[name].text()}")
    return rows


def _measure(model: Model, workbench: Workbench, store_file: Path) -> Row:
    with TemporaryDirectory(prefix="adapt-") as folder:
        start = time.monotonic()
        workbench.build(model, Path(folder) / "tuned.so")
        tuned = time.monotonic()
        with Workbench(workbench.session, store=store_file) as another:  # has compiled no kernel yet
            built = another.build(model, Path(folder) / "again.so")
        compile_s = time.monotonic() - tuned
        entries = compare(model, {OURS: built}, workbench.session, Silent())
    for entry in entries.values():
        if not entry.latency.ok:
            raise DeviceError(f"{model.name} was not measured: {entry.latency.error}")
    gap = workbench.profile(model, ()).gap
    with open_store(store_file, workbench.device) as store:
        candidates = sum(len(store.trials(kernel)) for kernel in prepare(model.proto, workbench.device, 1).kernels)
    return Row(entries[OURS], entries[FP32], gap, max(0.0, tuned - start - compile_s), candidates, compile_s)


def _load(name: str) -> Model:
    if name in TRAINED:
        return load_model(DATA / TRAINED[name])
    return load_module(RANDOM[name](), (torch.randn(1, 3, 224, 224),))


def _options() -> argparse.Namespace:
    names = [*TRAINED, *RANDOM]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="of each; all by default")
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--store", type=Path, help="tuned kernels; by default those of this user")
    parser.add_argument("--json", action="store_true", help="print JSON instead: SI units, samples, conditions")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
