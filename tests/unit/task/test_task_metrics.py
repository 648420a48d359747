from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score, mean_absolute_error, top_k_accuracy_score

from gos_adapt.task import LOSSES, METRICS, is_acceptable


def streamed(name: str, outputs: np.ndarray, targets: np.ndarray, batch: int) -> float:
    metric = METRICS[name]
    starts = range(0, len(targets), batch)
    return metric.value(sum(metric.tally(outputs[i : i + batch], targets[i : i + batch]) for i in starts))


def test_top_1_by_hand() -> None:
    outputs = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert METRICS["top-1"].score(outputs, np.array([1, 0, 0])) == 2 / 3


@pytest.mark.parametrize("k", [1, 5])
def test_top_k_agrees_with_sklearn_in_any_batches(k: int) -> None:
    rng = np.random.default_rng(0)
    outputs, targets = rng.normal(size=(203, 12)), rng.integers(0, 12, 203)
    expected = top_k_accuracy_score(targets, outputs, k=k, labels=range(12))
    assert streamed(f"top-{k}", outputs, targets, 50) == pytest.approx(expected, abs=1e-12)


def test_equal_scores_rank_by_class_as_argmax_does() -> None:
    outputs = np.zeros((2, 3))
    assert METRICS["top-1"].score(outputs, np.array([0, 1])) == 0.5


def test_outputs_that_are_not_numbers_are_never_right() -> None:
    broken = np.full((2, 6), np.nan)
    for name in ("top-1", "top-5", "mean-iou", "dice"):
        assert METRICS[name].score(broken, np.array([0, 3])) == 0
    assert math.isnan(METRICS["mean-absolute-error"].score(broken, np.zeros((2, 6))))


def test_overlap_by_hand() -> None:
    targets = np.array([[[0, 0], [1, 1]]])
    predicted = np.array([[[0, 1], [1, 1]]])
    outputs = np.eye(2)[predicted].transpose(0, 3, 1, 2)
    assert METRICS["mean-iou"].score(outputs, targets) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert METRICS["dice"].score(outputs, targets) == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_overlap_agrees_with_sklearn_in_any_batches() -> None:
    rng = np.random.default_rng(0)
    outputs, targets = rng.normal(size=(9, 4, 5, 6)), rng.integers(0, 4, (9, 5, 6))
    flat = targets.ravel(), outputs.argmax(axis=1).ravel()
    assert streamed("mean-iou", outputs, targets, 2) == pytest.approx(jaccard_score(*flat, average="macro"))
    assert streamed("dice", outputs, targets, 2) == pytest.approx(f1_score(*flat, average="macro"))


def test_a_class_that_never_occurs_does_not_count() -> None:
    targets = np.zeros((1, 2, 2), dtype=int)
    outputs = np.eye(3)[targets].transpose(0, 3, 1, 2)
    assert METRICS["mean-iou"].score(outputs, targets) == 1
    assert METRICS["dice"].score(outputs, targets) == 1


def test_absolute_error_agrees_with_sklearn_and_does_not_broadcast() -> None:
    rng = np.random.default_rng(0)
    outputs, targets = rng.normal(size=(31, 1)), rng.normal(size=31)
    expected = mean_absolute_error(targets, outputs.ravel())
    assert streamed("mean-absolute-error", outputs, targets, 8) == pytest.approx(expected)


def test_a_drop_is_in_points_for_fractions_and_relative_for_errors() -> None:
    assert METRICS["top-1"].drop(0.917, 0.907) == pytest.approx(0.01)
    assert METRICS["top-1"].drop(0.5, 0.6) < 0
    assert METRICS["mean-absolute-error"].drop(2.0, 2.02) == pytest.approx(0.01)
    assert METRICS["mean-absolute-error"].drop(2.0, 1.0) == -0.5
    assert METRICS["mean-absolute-error"].drop(0.0, 0.25) == 0.25
    assert not METRICS["mean-absolute-error"].drop(1.0, math.nan) <= 0.01


def test_cross_entropy_by_hand() -> None:
    loss = LOSSES["cross-entropy"].task(torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(-math.log(0.75))


def test_distilling_by_hand() -> None:
    outputs, teacher = torch.zeros(1, 2), torch.tensor([[2 * math.log(3.0), 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert LOSSES["cross-entropy"].distillation(outputs, teacher, 2.0).item() == pytest.approx(4 * expected)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=lambda loss: loss.name)
def test_distillation_is_least_at_the_teacher(loss) -> None:
    teacher = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    outputs = teacher.clone().requires_grad_()
    least = loss.distillation(outputs, teacher, 4.0)
    least.backward()
    assert least.item() == pytest.approx(0, abs=1e-6)
    assert outputs.grad.abs().max().item() == pytest.approx(0, abs=1e-6)
    assert loss.distillation(outputs + torch.eye(6, 4), teacher, 4.0) > least


def test_value_losses_do_not_broadcast_a_trailing_axis() -> None:
    outputs, targets = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 2.0, 3.0])
    assert LOSSES["mse"].task(outputs, targets).item() == pytest.approx(1 / 3)
    assert LOSSES["l1"].task(outputs, targets).item() == pytest.approx(1 / 3)


def test_a_loss_of_exactly_what_is_acceptable_is_acceptable() -> None:
    metric = METRICS["top-1"]
    for n in (200, 400, 2048):
        for hits in range(n // 2, n + 1):
            original, allowed = hits / n, round(0.01 * n) / n
            assert is_acceptable(metric.drop(original, original - allowed), allowed)
            assert not is_acceptable(metric.drop(original, original - allowed - 1 / n), allowed)
    assert is_acceptable(metric.drop(0.99, 0.98), 0.01)
    assert is_acceptable(0.0, 0.0)
    assert not is_acceptable(float("nan"), 0.01)
