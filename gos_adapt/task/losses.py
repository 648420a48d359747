"""What training minimises: one row of `LOSSES` a loss, each with the distillation loss that goes with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from gos_adapt.task.metrics import TargetKind


@dataclass(frozen=True)
class Loss:
    """A loss against the targets, and one against the original model's outputs.

    Attributes:
        name: The word in task files.
        targets: Integer classes or values.
        task: (outputs, targets) to a scalar.
        distillation: (outputs, the original model's outputs, temperature) to a scalar.
    """

    name: str
    targets: TargetKind
    task: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    distillation: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def _cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, targets)


def _mean_squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(outputs.reshape(targets.shape), targets)


def _mean_absolute(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.l1_loss(outputs.reshape(targets.shape), targets)


def _softened_divergence(outputs: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher || outputs) of the distributions over axis 1 at a temperature, times its square.

    At temperatures far above the outputs it is half their mean squared difference, each sample's outputs centred.

    Reference: Hinton et al. 2015, "Distilling the knowledge in a neural network"; the square keeps the gradient's size.
    Kim et al. 2021, "Comparing Kullback-Leibler divergence and mean squared error loss in knowledge distillation", find
    that limit best, as we do (docs/operator-search.md).
    """
    log_q = F.log_softmax(outputs / temperature, dim=1)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=1).mean() * temperature**2


def _squared_distance(outputs: torch.Tensor, teacher: torch.Tensor, _temperature: float) -> torch.Tensor:
    return F.mse_loss(outputs, teacher)


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("cross-entropy", "classes", _cross_entropy, _softened_divergence),
        Loss("mse", "values", _mean_squared, _squared_distance),
        Loss("l1", "values", _mean_absolute, _squared_distance),
    )
}
