"""Training all replacements together, and the layers around them."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from example_models import in_onnx_runtime, normal, small_model, with_output
from example_search import outputs_of, residual_model, sites_named, task_for, task_with
from onnx import numpy_helper

from gos_adapt.finetune import recovery
from gos_adapt.finetune.distil import score
from gos_adapt.finetune.recovery import STEPS, Recovery, Teacher, mixed_in_pairs, recover, with_retrained
from gos_adapt.model.model import Replacement
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
    given = with_retrained(model, replacements) if everything else replacements
    found = recovered(model, task, given)
    assert found.loss < 0.5 * Teacher(model, task, 3).loss(splice(model, given))
    assert [r.site for r in found.replacements] == [r.site for r in given]
    outputs = in_onnx_runtime(found.model.proto, task.selection.arrays()[0])[0]
    assert task.metric.score(outputs, task.selection.arrays()[1]) == pytest.approx(found.score.value, abs=0.01)
    assert score(found.model, task.selection, task.metric).value == found.score.value


def test_retrained_layers_are_all_that_no_replacement_touches(model, replacements):
    added = with_retrained(model, replacements)[len(replacements) :]
    assert {r.site for r in added} == {"r0", "d1", "d2", "y"}
    assert all(r.retrained for r in added)
    assert not any(r.retrained for r in replacements)


def test_branches_stay_as_a_whole_and_no_node_is_given_twice():
    residual = residual_model()
    sites = {site.name: site for site in find_sites(residual)}
    given = [sites[r.site] for r in with_retrained(residual, ())]
    nodes = [name for site in given for name in site.nodes]
    assert len(nodes) == len(set(nodes))
    assert {site.name for site in sites.values() if site.kind == "branch" and site.weights} <= {s.name for s in given}
    assert all(set(nodes).issuperset(site.nodes) for site in sites.values() if site.weights)


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
    teacher = Teacher(model, task, 0)
    assert teacher.label_weight == 0.0  # the labels are what it says itself
    assert teacher.loss(model) == pytest.approx(0.0, abs=1e-6)


def scaling(factor, shape=(3,)):
    """A model that multiplies by a factor."""
    nodes, weights = [("Mul", "x factor", "y", {})], [("factor", np.float32([factor]))]
    return with_output(small_model(nodes, ("N", *shape), ["y"], weights), *shape)


def partly_wrong(wrong):
    """Inputs that are 1 at the class and nearly 0 elsewhere, and classes: of the first training samples wrong ones."""
    classes = np.random.default_rng(7).integers(0, 3, 384)
    inputs = np.eye(3, dtype=np.float32)[classes] + 1e-4 * normal(384, 3, seed=8)  # no sample is in two splits
    return inputs, np.where(np.arange(384) < wrong, (classes + 1) % 3, classes)


def test_labels_weigh_as_the_original_does_not_know_them():
    weights = [Teacher(scaling(5.0), task_with(*partly_wrong(wrong)), 0).label_weight for wrong in (0, 1, 10, 96)]
    assert weights == pytest.approx([0.0, 10 / 192, 100 / 192, 1.0])


def test_values_and_many_labels_to_a_sample_do_not_count():
    inputs, _ = partly_wrong(0)
    values = Teacher(scaling(2.0), task_with(inputs, -inputs, "mse", "mean-absolute-error"), 0)
    images = normal(384, 3, 2, 2, seed=8)
    places = Teacher(scaling(2.0, (3, 2, 2)), task_with(images, images.argmin(axis=1), metric="mean-iou"), 0)
    for teacher in (values, places):
        assert teacher.label_weight == 0.0
        assert teacher[0].labels is None
        assert teacher.loss(scaling(1.0, teacher[0].inputs.shape[1:])) > 0


def test_labels_are_mixed_as_the_inputs_are():
    inputs, _ = partly_wrong(0)
    lesson = Teacher(scaling(-1.0), task_with(inputs, inputs.argmax(axis=1)), 0)[0]
    np.testing.assert_allclose(lesson.labels, lesson.inputs, atol=1e-3)
    assert np.any((lesson.labels.numpy() > 0.1) & (lesson.labels.numpy() < 0.9))


def test_a_constant_answer_is_as_far_from_the_labels_as_their_weight():
    task = task_with(*partly_wrong(96))
    teacher, without = Teacher(scaling(1.0), task, 0), Teacher(scaling(1.0), task, 0)
    without.label_weight = 0.0
    shares = np.bincount(task.training.targets) / task.training.n
    # The outputs do not depend on the inputs: all that differs are the labels.
    same = {"y": torch.from_numpy(np.log(shares).astype(np.float32)).expand(32, 3)}
    distances = [float(one.distance(same, one[0])) for one in (teacher, without)]
    assert distances[0] - distances[1] == pytest.approx(1.0, abs=0.1)


def test_labels_teach_what_the_original_does_not_know():
    """The largest of three inputs says the class; the original does not look at the last."""
    weights = [("w", np.diag(np.float32([1.0, 1.0, 0.0]))), ("b", np.zeros(3, np.float32))]
    model = with_output(small_model([("Gemm", "x w b", "y", {})], ("N", 3), ["y"], weights), 3)
    inputs = normal(384, 3, seed=6)
    task = task_with(inputs, inputs.argmax(axis=1))
    teacher = Teacher(model, task, 3)
    assert teacher.label_weight == 1.0
    found = recover(model, with_retrained(model, ()), task, FAST, lambda step: step / 100, teacher=teacher)
    inputs, targets = task.selection.arrays()
    before, after = (
        float(task.loss.task(torch.from_numpy(outputs_of(m, inputs)), torch.from_numpy(targets)))
        for m in (model, found.model)
    )
    assert after < 0.97 * before
    assert found.score.value > score(model, task.selection, task.metric).value


def test_ends_of_stages_count_as_much_as_outputs(model, task):
    teacher = Teacher(model, task, 0)
    lesson = teacher[0]
    answers = lesson.answers
    assert float(teacher.distance(answers, lesson)) == pytest.approx(0.0, abs=1e-6)
    for name in answers:
        constant = answers | {name: answers[name].mean(dim=0, keepdim=True).expand_as(answers[name])}
        assert float(teacher.distance(constant, lesson)) == pytest.approx(1.0, rel=1e-3)


def test_ends_of_stages_are_learnt_that_outputs_do_not_show(model, task, replacements):
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


def test_a_batch_is_the_same_whenever_it_is_asked_for(model, task):
    first, second = Teacher(model, task, 0), Teacher(model, task, 0)
    for step in (5, 0, 5):
        lesson, same = first[step], second[step]
        np.testing.assert_array_equal(lesson.inputs, same.inputs)
        np.testing.assert_array_equal(lesson.labels, same.labels)
        assert set(lesson.answers) == {"y", "o2", "f"}  # the classes, and where the two stages before them end
        for name, answer in lesson.answers.items():
            np.testing.assert_array_equal(answer, same.answers[name])
    assert not np.array_equal(first[0].inputs, first[1].inputs)


@pytest.mark.parametrize("fits", [True, False])
def test_samples_come_again_only_where_the_answers_can_be_kept(model, task, monkeypatch, fits):
    if not fits:
        monkeypatch.setattr(recovery, "MAX_BYTES", 0)
    first, second = Teacher(model, task, 0), Teacher(model, task, 0)
    later = recovery.VARIANTS * (task.training.n // task.batch)
    assert np.array_equal(first[0].inputs, first[later].inputs) == fits
    for name, answer in first[later].answers.items():
        np.testing.assert_allclose(answer, second[later].answers[name], rtol=1e-4, atol=1e-5)


def test_pairs_are_mixed_in_their_own_proportions():
    mixed = mixed_in_pairs(torch.arange(4.0)[:, None], np.array([0.0, 0.5, 1.0, 0.25]))
    np.testing.assert_allclose(mixed[:, 0], [0, 1.5, 1, 0.75 * 3], rtol=1e-6)


def test_every_second_sample_reaches_training_unmixed(model, task):
    inputs = Teacher(model, task, 0)[0].inputs
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
