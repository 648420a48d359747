"""Cutting, training and judging replacements inside a small residual model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from example_models import in_onnx_runtime
from example_search import INPUTS, QUICK, outputs_of, residual_model, sites_named, task_for

from gos_adapt.finetune import adapted as adapted_module
from gos_adapt.finetune import distil
from gos_adapt.finetune.adapted import AdaptedModel, CutSamples, cut
from gos_adapt.finetune.capture import capture
from gos_adapt.finetune.distil import AccuracyJudge, Training, prepare_lessons, score, train
from gos_adapt.model.model import Replacement
from gos_adapt.model.splice import splice
from gos_adapt.model.torch_executor import TorchExecutor
from gos_adapt.operators.evaluate import evaluate
from gos_adapt.operators.seeds import seeds
from gos_adapt.operators.torch_form import TorchOperator


@pytest.fixture(scope="module")
def model():
    return residual_model()


@pytest.fixture(scope="module")
def task(model):
    return task_for(model)


@pytest.fixture(scope="module")
def lessons(model, task):
    return prepare_lessons(model, task, 128)


def grouped(site):
    seed = next(seed for seed in seeds(site.operator) if seed.name.startswith("grouped 2"))
    return seed.graph, seed.initial(site.weights, np.random.default_rng(0))


def replaced(model, *names):
    sites = sites_named(model, *names)
    return sites, [Replacement(site.name, *grouped(site), ("seed grouped",)) for site in sites]


def test_the_cut_holds_what_the_changed_part_reads_and_nothing_else(model):
    assert cut(model, sites_named(model, "r2"), ("y",)) == ("o1",)
    assert cut(model, sites_named(model, "d2"), ("y",)) == ("r2", "o1")
    assert cut(model, sites_named(model, "r1", "r2"), ("y",)) == ("r0",)


@pytest.mark.parametrize("names", [(), ("r1",), ("d1", "r2"), ("o1", "o2"), ("r1", "d1", "o2")])
@pytest.mark.parametrize("whole", [False, True])
def test_with_the_sites_own_operators_the_model_is_unchanged(model, names, whole):
    adapted = AdaptedModel(model, sites_named(model, *names), whole=whole)
    operators = [TorchOperator(site.operator, site.weights) for site in adapted.sites]
    with torch.no_grad():
        outputs = adapted(adapted.at_first_cut(torch.from_numpy(INPUTS[:4])), operators)
    np.testing.assert_allclose(outputs, in_onnx_runtime(model.proto, INPUTS[:4])[0], atol=1e-4)


@pytest.mark.parametrize("also", ["r0", "o1", "d2", "f", "y"])  # before the sites, between, at one, behind, the output
def test_further_tensors_are_those_of_the_changed_model(model, also):
    sites, replacements = replaced(model, "r1", "d2")
    adapted = AdaptedModel(model, sites, ("y", also), whole=True)
    inputs = torch.from_numpy(INPUTS[:4])
    operators = [TorchOperator(replacement.operator, replacement.weights) for replacement in replacements]
    with torch.no_grad():
        found = adapted.compute(adapted.at_first_cut(inputs), operators)
        expected = TorchExecutor(splice(model, replacements).proto).compute({"x": inputs}, ("y", also))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_captured_inputs_are_what_the_site_reads(model):
    (site,) = sites_named(model, "o1")
    captured = capture(model, [site], INPUTS[:6])["o1"]
    computed = evaluate(site.operator, [captured.inputs.numpy()], site.weights)
    rest = AdaptedModel(model, [site])
    with torch.no_grad():
        outputs = rest({"r0": captured.inputs}, [lambda _: torch.from_numpy(computed)])
    np.testing.assert_allclose(outputs, outputs_of(model, INPUTS[:6]), atol=1e-4)


def test_uncached_samples_equal_cached_ones(model, monkeypatch):
    adapted = AdaptedModel(model, sites_named(model, "r2"))
    index = np.array([3, 1, 2])
    cached = CutSamples(adapted, lambda which: INPUTS[which], 10)[index]
    monkeypatch.setattr(adapted_module, "MAX_BYTES", 0)
    computed = CutSamples(adapted, lambda which: INPUTS[which], 10)[index]
    torch.testing.assert_close(cached["o1"], computed["o1"])


def test_training_only_replacements_leaves_the_rest_alone_and_learns(model, lessons):
    sites, replacements = replaced(model, "r1")
    adapted = AdaptedModel(model, sites)
    operators = [TorchOperator(r.operator, r.weights) for r in replacements]
    before = {name: value.clone() for name, value in adapted.executor.state_dict().items()}
    taught = CutSamples(adapted, lambda which: lessons.samples.part(which).arrays()[0], lessons.samples.n)

    def loss():
        with torch.no_grad():
            return float(lessons.task.loss.distillation(adapted(taught[:], operators), lessons.teacher, 4.0))

    start = loss()
    train(adapted, operators, taught, lessons, Training(steps=20, learning_rate=0.01), seed=0)
    assert loss() < 0.5 * start
    for name, value in adapted.executor.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_training_is_deterministic_and_ends_with_the_time(model, lessons):
    sites, replacements = replaced(model, "r1")
    adapted = AdaptedModel(model, sites)
    taught = CutSamples(adapted, lambda which: lessons.samples.part(which).arrays()[0], lessons.samples.n)

    def trained(seconds):
        operators = [TorchOperator(r.operator, r.weights) for r in replacements]
        train(adapted, operators, taught, lessons, Training(steps=5), seed=4, time_left=lambda: seconds)
        return operators[0].weights()

    np.testing.assert_array_equal(trained(1.0)[0], trained(1.0)[0])
    np.testing.assert_array_equal(trained(0.0)[0], replacements[0].weights[0])


def test_the_model_scores_one_against_its_own_answers(model, task):
    assert score(model, task.selection, task.metric).value == 1.0


def test_judging_the_original_operator_finds_no_drop(model, task, lessons):
    sites = sites_named(model, "r2", "r1")
    judge = AccuracyJudge(model, sites, lessons, score(model, task.selection, task.metric), fitting=QUICK)
    judgement = judge(sites[0].operator, tuple(site.weights for site in sites))
    assert (judgement.score, judgement.drop) == (1.0, 0.0)
    for site, weights in zip(sites, judgement.weights, strict=True):  # given order, not model order
        np.testing.assert_array_equal(weights[0], site.weights[0])


def test_judging_trains_only_where_it_can_change_the_verdict(model, task, lessons):
    sites, replacements = replaced(model, "r1")
    operator, weights = replacements[0].operator, (replacements[0].weights,)
    original = score(model, task.selection, task.metric)
    training = Training(steps=40, learning_rate=0.01)
    trained = AccuracyJudge(model, sites, lessons, original, training=training, fitting=QUICK, hopeless=1.1)
    untrained = AccuracyJudge(model, sites, lessons, original, training=training, fitting=QUICK, hopeless=0.0)
    assert trained(operator, weights).drop < untrained(operator, weights).drop


def test_a_glance_compares_with_the_original_on_the_same_samples(model, task, lessons, monkeypatch):
    """The first samples may be harder than all: here the original has none of them right, and all others."""
    monkeypatch.setattr(distil, "GLANCE", 32)
    targets = (task.selection.targets + (np.arange(task.selection.n) < distil.GLANCE)) % 3
    harder = replace(task, selection=replace(task.selection, targets=targets))
    (site,) = sites_named(model, "r1")
    original = score(model, harder.selection, task.metric)
    judge = AccuracyJudge(model, [site], replace(lessons, task=harder), original, fitting=QUICK)
    itself = [TorchOperator(site.operator, site.weights)]
    assert judge._judgement(itself, at_a_glance=True).score == 0.0
    assert judge._judgement(itself, at_a_glance=True).drop == judge._judgement(itself).drop == 0.0
