"""Training all replacements together, and the layers around them."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from example_models import in_onnx_runtime, normal, small_model
from example_search import residual_model, sites_named, task_for
from onnx import numpy_helper

from gos_adapt.finetune.distil import score
from gos_adapt.finetune.recovery import STEPS, Recovery, Teacher, mixed_in_pairs, recover, with_retrained_layers
from gos_adapt.model.model import Replacement, TensorSpec
from gos_adapt.model.sites import find_sites
from gos_adapt.model.splice import splice
from gos_adapt.model.torch_executor import TorchExecutor
from gos_adapt.operators.seeds import seeds

FAST = Recovery(keep_every_s=0.0)


@pytest.fixture(scope="module")
def model():
    return residual_model()


@pytest.fixture(scope="module")
def task(model):
    return task_for(model)


@pytest.fixture(scope="module")
def replacements(model):
    found = []
    for site in sites_named(model, "r1", "r2"):
        seed = next(seed for seed in seeds(site.operator) if seed.name.startswith("grouped 2"))
        found.append(
            Replacement(site.name, seed.graph, seed.initial(site.weights, np.random.default_rng(0)), ("seed",))
        )
    return tuple(found)


def recovered(model, task, replacements, steps=100, **options):
    return recover(
        model, replacements, task, FAST, lambda step: step / steps, teacher=Teacher(model, task, 3), **options
    )


@pytest.mark.parametrize("everything", [False, True])
def test_recovery_gives_the_model_it_scored(model, task, replacements, everything):
    given = with_retrained_layers(model, replacements) if everything else replacements
    found = recovered(model, task, given)
    assert found.loss < 0.5 * Teacher(model, task, 3).loss(splice(model, given))
    assert [r.site for r in found.replacements] == [r.site for r in given]
    outputs = in_onnx_runtime(found.model.proto, task.selection.arrays()[0])[0]
    assert task.metric.score(outputs, task.selection.arrays()[1]) == pytest.approx(found.score.value, abs=0.01)
    assert score(found.model, task.selection, task.metric).value == found.score.value


def test_retrained_layers_are_all_that_no_replacement_touches(model, replacements):
    added = with_retrained_layers(model, replacements)[len(replacements) :]
    assert {r.site for r in added} == {"r0", "d1", "d2", "y"}
    assert all(r.retrained for r in added)
    assert not any(r.retrained for r in replacements)


def test_what_is_not_given_is_not_trained(model, task, replacements):
    found = recovered(model, task, replacements)
    before = {w.name: w.raw_data for w in model.proto.graph.initializer}
    after = {w.name: w.raw_data for w in found.model.proto.graph.initializer}
    kept = before.keys() & after.keys()
    assert {"w0", "w1b", "w2b", "w3"} <= kept
    assert all(before[name] == after[name] for name in kept)


def test_a_training_that_was_killed_ends_like_one_that_was_not(model, task, replacements):
    whole = recovered(model, task, replacements)
    states = []
    recovered(model, task, replacements, keep=states.append)
    middle = next(state for state in states if int(state[STEPS]) == 17)
    rest = recovered(model, task, replacements, resume=middle)
    assert rest.steps == whole.steps == 100
    for one, other in zip(rest.replacements, whole.replacements, strict=True):
        for mine, theirs in zip(one.weights, other.weights, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_training_that_harms_is_not_kept(model, task, replacements):
    harmful = Recovery(learning_rate=1e30, warm_up=0.0)  # ends in NaN
    found = recover(model, replacements, task, harmful, lambda step: step / 3, teacher=Teacher(model, task, 0))
    assert found.replacements == replacements
    assert found.loss == Teacher(model, task, 0).loss(splice(model, replacements))


def test_the_original_is_at_no_distance_from_its_teacher(model, task):
    assert Teacher(model, task, 0).loss(model) == pytest.approx(0.0, abs=1e-6)


def test_features_count_as_much_as_outputs(model, task):
    teacher = Teacher(model, task, 0)
    _, answers = teacher[0]
    assert float(teacher.distance(answers, answers)) == pytest.approx(0.0, abs=1e-6)
    for name in answers:
        constant = answers | {name: answers[name].mean(dim=0, keepdim=True).expand_as(answers[name])}
        assert float(teacher.distance(constant, answers)) == pytest.approx(1.0, rel=1e-3)


def test_features_are_learnt_that_outputs_do_not_show(model, task, replacements):
    """The last layer reads the first feature alone; the others must come nearer, too."""
    blinkered = deepcopy(model.proto)
    (last,) = (weight for weight in blinkered.graph.initializer if weight.name == "w3")
    last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last) * (np.arange(8) == 0)[:, None], "w3"))
    model = replace(model, proto=blinkered)
    inputs = torch.from_numpy(task.selection.arrays()[0])

    def others(model):
        with torch.no_grad():
            (features,) = TorchExecutor(model.proto).compute({"x": inputs}, ("f",))
        return features[:, 1:]

    def error(replacements):
        return float((others(splice(model, replacements)) - others(model)).square().mean())

    before, after = error(replacements), error(recovered(model, task, replacements).replacements)
    assert after < 0.7 * before  # 0.98 without


def test_features_inside_a_replacement_are_not_compared():
    layers = [("Gemm", "h w1 b1", "a", {}), ("Relu", "a", "r", {}), ("Gemm", "r w2 b2", "d", {})]
    nodes = [("Gemm", "x w0 b0", "h", {}), *layers, ("Add", "d h", "y", {})]
    weights = [(f"w{k}", normal(6, 6, seed=k)) for k in range(3)] + [(f"b{k}", normal(6, seed=k)) for k in range(3)]
    model = replace(small_model(nodes, ("N", 6), ["y"], weights), outputs=(TensorSpec("y", ("N", 6), "float32"),))
    task = task_for(model, normal(384, 6, seed=4))
    teacher = Teacher(model, task, 0)
    assert teacher.compared == ("y", "r")
    branch = next(site for site in find_sites(model) if site.kind == "branch")
    given = (Replacement(branch.name, branch.operator, tuple(0.9 * w for w in branch.weights)),)
    assert recovered(model, task, given).loss < 0.5 * teacher.loss(splice(model, given))


def test_a_batch_is_the_same_whenever_it_is_asked_for(model, task):
    first, second = Teacher(model, task, 0), Teacher(model, task, 0)
    for step in (5, 0, 5):
        (inputs, answers), (same_inputs, same_answers) = first[step], second[step]
        np.testing.assert_array_equal(inputs, same_inputs)
        assert set(answers) == {"y", "f"}  # the classes, and what the last layer reads
        for name, answer in answers.items():
            np.testing.assert_array_equal(answer, same_answers[name])
    assert not np.array_equal(first[0][0], first[1][0])


def test_pairs_are_mixed_in_their_own_proportions():
    mixed = mixed_in_pairs(torch.arange(4.0)[:, None], np.array([0.0, 0.5, 1.0, 0.25]))
    np.testing.assert_allclose(mixed[:, 0], [0, 1.5, 1, 0.75 * 3], rtol=1e-6)


def test_every_second_sample_reaches_training_unmixed(model, task):
    inputs, _ = Teacher(model, task, 0)[0]
    given = {sample.tobytes() for sample in task.training.arrays()[0]}
    unmixed = sum(sample.numpy().tobytes() in given for sample in inputs)
    assert 0.25 < unmixed / len(inputs) < 0.75


def test_the_learning_rate_rises_and_falls():
    settings = Recovery(learning_rate=1.0, warm_up=0.1)
    rates = [settings.learning_rate_at(share) for share in np.linspace(0, 1, 101)]
    peak = int(np.argmax(rates))
    assert 5 < peak < 15
    assert rates == sorted(rates[: peak + 1]) + sorted(rates[peak + 1 :], reverse=True)
    assert rates[-1] == 0.0


def test_progress_is_the_share_that_is_done(model, task, replacements):
    shares = []
    recovered(model, task, replacements, steps=4, progress=shares.append)
    assert shares == [0, 0.25, 0.5, 0.75]
