"""Steps that are orthogonal for matrices and relative to the size of each weight."""

import numpy as np
import pytest
import torch

from gos_adapt.finetune.optimizer import Optimizer, orthogonal


def leaf(*shape, size=1.0, seed=0):
    values = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    value = values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values
    return torch.nn.Parameter(value)


def moved(weight, gradient, learning_rate=1e-3):
    """How far one step along a gradient moves a weight, in units of its size and the learning rate."""
    before, size = weight.detach().clone(), float(weight.detach().square().mean().sqrt())
    Optimizer([weight]).step((weight * gradient).sum(), learning_rate)
    return (weight.detach() - before) / (learning_rate * size)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (6, 4, 3, 3)])
def test_a_matrix_moves_along_an_orthogonal_one_downhill(shape):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    change = moved(leaf(*shape), gradient).flatten(1)
    lengths = torch.linalg.svdvals(change) / (0.2 * max(change.shape) ** 0.5)
    assert lengths.min() > 0.5  # what five Newton-Schulz steps leave of 1
    assert lengths.max() < 1.5
    assert float((change * gradient.flatten(1)).sum()) < 0


@pytest.mark.parametrize("shape", [(5,), (6, 1, 3, 3)])
def test_what_mixes_nothing_moves_by_its_sign(shape):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(moved(leaf(*shape, size=30.0), gradient), -gradient.sign(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(5,), (4, 6), (6, 4, 3, 3)])
def test_steps_do_not_depend_on_the_scale_of_weight_or_loss(shape):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    small, large = moved(leaf(*shape, size=0.01), 1e-2 * gradient), moved(leaf(*shape, size=10.0), 10 * gradient)
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(3, 8, 24), (2, 24, 8), (2, 6, 6)])
def test_directions_stay_and_lengths_become_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    found = left.mT @ orthogonal(matrices) @ right.mT
    lengths = torch.diagonal(found, dim1=1, dim2=2)
    torch.testing.assert_close(found, torch.diag_embed(lengths), rtol=0, atol=1e-4)
    assert lengths.max() < 1.3
    assert lengths.median() > 0.65


def test_steps_are_those_of_torch():
    shapes, rate = [(8, 24), (24, 8), (8, 24)], 0.01
    ours, theirs = ([leaf(*shape, size=1 + k, seed=k) for k, shape in enumerate(shapes)] for _ in range(2))
    optimizer = Optimizer(ours)
    rates = [rate * float(weight.detach().square().mean().sqrt()) for weight in theirs]
    groups = [{"params": [weight], "lr": own} for weight, own in zip(theirs, rates, strict=True)]
    reference = torch.optim.Muon(groups, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        gradients = [torch.randn(shape, generator=torch.Generator().manual_seed(9 + step)) for shape in shapes]
        optimizer.step(sum((w * g).sum() for w, g in zip(ours, gradients, strict=True)), rate)
        reference.zero_grad()
        sum((w * g).sum() for w, g in zip(theirs, gradients, strict=True)).backward()
        reference.step()
    for weight, expected, own in zip(ours, theirs, rates, strict=True):
        # theirs computes in bfloat16; a step moves each number by about 0.2 of the learning rate
        torch.testing.assert_close(weight, expected, rtol=0, atol=0.03 * own)


def test_what_no_gradient_reaches_stays():
    used, unused = leaf(4, 4), leaf(3, 3)
    before = unused.detach().clone()
    Optimizer([used, unused]).step(used.sum(), 0.1)
    assert torch.equal(unused, before)


def test_another_optimizer_goes_on_from_a_state():
    shapes = [(5,), (4, 6), (6, 4, 3, 3), (6, 1, 3, 3)]
    whole, begun, resumed = ([leaf(*shape) for shape in shapes] for _ in range(3))
    optimizers = [Optimizer(weights) for weights in (whole, begun, resumed)]

    def train(k, weights, steps):
        for _ in range(steps):
            optimizers[k].step(sum(((weight - 1) ** 2).sum() for weight in weights), 0.01)

    train(0, whole, 6)
    train(1, begun, 3)
    for weight, trained in zip(resumed, begun, strict=True):
        weight.data.copy_(trained.detach())
    optimizers[2].restore(optimizers[1].state())
    train(2, resumed, 3)
    for weight, expected in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(weight.detach().numpy(), expected.detach().numpy())
