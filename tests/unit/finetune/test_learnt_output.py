"""Classifiers that end in a softmax learn as if it were not there."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from example_models import normal, small_model, with_output
from example_search import residual_model, sites_named, task_for, task_with
from onnx import helper

from gos_adapt.finetune.distil import AccuracyJudge, prepare_lessons, score
from gos_adapt.finetune.fit import CLOSED_FORM
from gos_adapt.finetune.learnt_output import learnt_output
from gos_adapt.finetune.loss import LossJudge
from gos_adapt.finetune.recovery import Recovery, Teacher, recover
from gos_adapt.model.model import Replacement, TensorSpec
from gos_adapt.operators.seeds import seeds


@pytest.fixture(scope="module")
def plain():
    return residual_model()


@pytest.fixture(scope="module")
def softened(plain):
    """The same with probabilities as output."""
    proto = deepcopy(plain.proto)
    proto.graph.node.append(helper.make_node("Softmax", ["y"], ["s"], axis=-1))
    proto.graph.value_info.append(proto.graph.output[0])
    proto.graph.output[0].name = "s"
    return replace(plain, proto=proto, original=proto, outputs=(TensorSpec("s", ("N", 3), "float32"),))


def narrow(model):
    (site,) = sites_named(model, "r1")
    seed = next(seed for seed in seeds(site.operator) if seed.name.startswith("grouped 2"))
    return site, Replacement(site.name, seed.graph, seed.initial(site.weights, np.random.default_rng(0)), ("seed",))


def test_both_are_as_far_from_their_original(plain, softened):
    losses, scores = [], []
    for model in (plain, softened):
        task = task_for(model)
        found = recover(
            model, [narrow(model)[1]], task, Recovery(), lambda step: step / 10, teacher=Teacher(model, task, 3)
        )
        losses.append(found.loss)
        scores.append(found.score.value)
        assert [output.name for output in found.model.outputs] == [model.outputs[0].name]
    assert losses[0] == losses[1] > 0
    assert scores[0] == scores[1]


def test_candidates_cost_both_the_same(plain, softened):
    judgements = []
    for model in (plain, softened):
        task = task_for(model)
        lessons, (site, replacement) = prepare_lessons(model, task, 64), narrow(model)
        loss = LossJudge(model, site, lessons)(replacement.operator, (replacement.weights,))
        judge = AccuracyJudge(model, [site], lessons, score(model, task.selection, task.metric), fitting=CLOSED_FORM)
        drop = judge(replacement.operator, (replacement.weights,))
        judgements.append((loss.drop, drop.score, drop.drop))
    assert judgements[0] == judgements[1]
    assert judgements[0][0] > 0


def model_with_softmax(axis, shape=(3,)):
    nodes = [("Mul", "x factor", "l", {}), ("Softmax", "l", "y", {"axis": axis})]
    return with_output(small_model(nodes, ("N", *shape), ["y"], [("factor", np.float32([2.0]))]), *shape)


@pytest.mark.parametrize(
    ("axis", "shape", "learnt"), [(1, (3,), "l"), (-1, (3,), "l"), (-1, (3, 4), "y"), (1, (3, 4), "l")]
)
def test_only_a_softmax_over_the_classes_is_left_out(axis, shape, learnt):
    inputs = normal(384, *shape, seed=1)
    task = task_with(inputs, inputs.argmax(axis=1), metric="top-1" if len(shape) == 1 else "mean-iou")
    assert learnt_output(model_with_softmax(axis, shape), task) == learnt


def test_probabilities_that_are_wanted_as_values_are_learnt_as_they_are():
    inputs = normal(384, 3, seed=1)
    wanted = torch.from_numpy(inputs).softmax(dim=1).numpy()
    task = task_with(inputs, wanted, "mse", "mean-absolute-error")
    assert learnt_output(model_with_softmax(1), task) == "y"
