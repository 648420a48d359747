"""Score a model on a split: any callable, or an ONNX model in ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gos_adapt.task.metrics import Metric
    from gos_adapt.task.split import Split

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Score:
    """A metric's value over the `n` samples of a split."""

    metric: Metric
    value: float
    n: int
    split: str

    @property
    def correct(self) -> int | None:
        """How many samples were right, for a metric that counts them."""
        return round(self.value * self.n) if self.metric.unit == "fraction of samples" else None


def evaluate(predict: Callable[[Array], Array], split: Split, metric: Metric, *, batch: int = 128) -> Score:
    """Score a callable from preprocessed inputs ``(<= batch, ...)`` to the model's first output."""
    tally = sum(metric.tally(predict(inputs), targets) for inputs, targets in split.batches(batch))
    return Score(metric, metric.value(np.asarray(tally)), split.n, split.name)


def evaluate_onnx(
    model: bytes | Path | onnxruntime.InferenceSession,
    split: Split,
    metric: Metric,
    *,
    threads: int = 1,
    batch: int = 128,
) -> Score:
    """Score an ONNX model's first output in ONNX Runtime on the CPU.

    Args:
        model: Serialised model, its file, or a session (whose thread count then stands).
        split: The samples.
        metric: What to count.
        threads: Of one inference.
        batch: Samples an inference; a model of fixed batch uses its own, the last batch filled up and cut again.
    """
    session = model if isinstance(model, onnxruntime.InferenceSession) else open_session(model, threads)
    entry, output = session.get_inputs()[0], session.get_outputs()[0]
    fixed = entry.shape[0] if isinstance(entry.shape[0], int) else None

    def predict(inputs: Array) -> Array:
        n = len(inputs)
        fed = inputs if fixed is None else inputs[np.minimum(np.arange(fixed), n - 1)]
        first: Array = session.run([output.name], {entry.name: fed})[0]
        return first[:n]

    return evaluate(predict, split, metric, batch=fixed or batch)


def open_session(model: bytes | Path, threads: int, cores: Sequence[int] = ()) -> onnxruntime.InferenceSession:
    """Return an inference session on the CPU with all graph optimisations.

    Args:
        model: Its bytes, or its file.
        threads: The calling thread and those that ONNX Runtime starts.
        cores: Where given, one for each thread: those that ONNX Runtime starts are tied to all but the first.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if cores:
        affinities = ";".join(str(core + 1) for core in cores[1:])
        options.add_session_config_entry("session.intra_op_thread_affinities", affinities)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
