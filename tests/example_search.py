"""A small residual model with a task, and a search context whose latencies are counted instead of timed."""

from __future__ import annotations

import numpy as np
import torch
from example_models import normal, small_model, with_output

from gos_adapt.cost.analytical import Roofline
from gos_adapt.finetune.adapted import AdaptedModel
from gos_adapt.finetune.capture import capture
from gos_adapt.finetune.distil import AccuracyJudge, Training, prepare_lessons, score
from gos_adapt.finetune.fit import FitSettings, fit
from gos_adapt.model.sites import find_sites
from gos_adapt.operators.torch_form import TorchOperator
from gos_adapt.quantities import Conditions, Measurement
from gos_adapt.search.cascade import Context
from gos_adapt.task.losses import LOSSES
from gos_adapt.task.metrics import METRICS
from gos_adapt.task.split import Split
from gos_adapt.task.task import Task

CONV = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
CONDITIONS = Conditions("paper", 1, "2026-01-01T00:00:00+00:00", "counted")
QUICK = FitSettings(steps=5)
INPUTS = normal(384, 3, 8, 8, seed=5)


def residual_model(channels=8, inputs=INPUTS):
    """Stem, two residual blocks alike, classifier of three classes about as frequent on these inputs."""
    logits = outputs_of(_model(channels, inputs, np.zeros(3, np.float32)), inputs)
    return _model(channels, inputs, -logits.mean(axis=0))


def _model(channels, inputs, bias):
    c, fan_in = channels, (8 / channels) ** 0.5
    nodes = [("Conv", "x w0 b0", "c0", CONV), ("Relu", "c0", "r0", {})]
    for k, source in ((1, "r0"), (2, "o1")):
        nodes += [
            ("Conv", f"{source} w{k}a b{k}a", f"c{k}", CONV),
            ("Relu", f"c{k}", f"r{k}", {}),
            ("Conv", f"r{k} w{k}b b{k}b", f"d{k}", CONV),
            ("Add", f"d{k} {source}", f"s{k}", {}),
            ("Relu", f"s{k}", f"o{k}", {}),
        ]
    nodes += [("GlobalAveragePool", "o2", "p", {}), ("Flatten", "p", "f", {}), ("Gemm", "f w3 b3", "y", {})]
    names = ("w1a", "w1b", "w2a", "w2b")
    kernels = [(name, 0.2 * fan_in * normal(c, c, 3, 3, seed=i)) for i, name in enumerate(names)]
    biases = [(f"b{name}", 0.1 * normal(c, seed=20 + i)) for i, name in enumerate(("0", "1a", "1b", "2a", "2b"))]
    ends = [("w0", 0.4 * normal(c, 3, 3, 3, seed=9)), ("w3", normal(c, 3, seed=10)), ("b3", bias)]
    return with_output(small_model(nodes, ("N", *inputs.shape[1:]), ["y"], [*kernels, *biases, *ends]), 3)


def sites_named(model, *names):
    sites = {site.name: site for site in find_sites(model)}
    return tuple(sites[name] for name in names)


def outputs_of(model, inputs):
    adapted = AdaptedModel(model, ())
    with torch.no_grad():
        return adapted(adapted.at_first_cut(torch.from_numpy(inputs)), ()).numpy()


def task_for(model, inputs=INPUTS):
    """Random inputs; the targets are what the model itself says, so its own accuracy is 1."""
    return task_with(inputs, outputs_of(model, inputs).argmax(axis=1))


def task_with(inputs, targets, loss="cross-entropy", metric="top-1"):
    """384 samples, half of them for training."""
    parts = {"training": (0, 192), "selection": (192, 320), "test": (320, 352), "calibration": (352, 384)}
    splits = {name: Split(name, inputs[a:b], targets[a:b]) for name, (a, b) in parts.items()}
    return Task("example", METRICS[metric], LOSSES[loss], batch=32, **splits)


def counted_latencies(batch):
    """Latencies that follow from the multiply-accumulates alone, with a little repeatable noise."""
    return [
        Measurement(tuple((1e-6 + 1e-11 * operator.macs) * (1 + 0.001 * k) for k in range(3)), CONDITIONS)
        for operator, _weights in batch
    ]


def context_for(model, sites, folder, *, judge=None, measure=counted_latencies, time_left=lambda: 1e9):
    task = task_for(model)
    if judge is None:
        lessons = prepare_lessons(model, task, 192)
        original = score(model, task.selection, task.metric)
        judge = AccuracyJudge(
            model, sites, lessons, original, training=Training(steps=4), fitting=QUICK, fit_samples=32
        )
    activations = capture(model, sites[:1], task.training.arrays()[0][:32])[sites[0].name]
    teacher = TorchOperator(sites[0].operator, sites[0].weights)
    return Context(
        sites=sites,
        predict=Roofline(1e11, 1e12, 1e-7).predict,
        fit_error=lambda operator, weights: fit(operator, weights, teacher, activations, QUICK).relative_error,
        measure=measure,
        judge=judge,
        folder=folder,
        model_key="m0",
        time_left=time_left,
    )
