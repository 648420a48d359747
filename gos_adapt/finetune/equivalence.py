"""Judge without a task: a replacement may change nothing but rounding.

Without data nobody can say what an error costs, so a candidate must compute what the original operator computes, on
what the sites read inside the model and on random inputs, within `TOLERANCE` of the outputs' scale. Nothing is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from gos_adapt.finetune.capture import Activations, capture
from gos_adapt.finetune.fit import DEFAULT, FitSettings, fit, run
from gos_adapt.operators.torch_form import TorchOperator
from gos_adapt.search.candidate import NO_NUMBER, Judgement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gos_adapt.model.model import Array, Model, Site
    from gos_adapt.operators.graph import OperatorGraph

TOLERANCE = 1e-4
"""Give this as the search's epsilon."""


class EquivalenceJudge:
    """Judges candidates for one group of sites of one model by how far their outputs are from the original's."""

    def __init__(
        self,
        model: Model,
        sites: Sequence[Site],
        samples: Array,
        rng: np.random.Generator,
        settings: FitSettings = DEFAULT,
    ) -> None:
        """Capture what the sites read on `samples` ``(n, ...)``, inputs of the model: real ones or random."""
        captured = capture(model, sites, samples)
        self._material = [
            (TorchOperator(site.operator, site.weights), captured[site.name], _random_like(captured[site.name], rng))
            for site in sites
        ]
        self._settings = settings

    def __call__(self, operator: OperatorGraph, weights: tuple[tuple[Array, ...], ...]) -> Judgement:
        """Return the judgement of `operator` at all sites: its drop is the largest deviation relative to the scale."""
        deviation, fitted = 0.0, []
        for own, (teacher, captured, random) in zip(weights, self._material, strict=True):
            fitted.append(fit(operator, own, teacher, captured, self._settings).weights)
            candidate = TorchOperator(operator, fitted[-1])
            deviation = max(
                deviation, *(_deviation(candidate, teacher, inputs) for inputs in (captured.inputs, random))
            )
        return Judgement(None, deviation, tuple(fitted))


def _random_like(captured: Activations, rng: np.random.Generator) -> torch.Tensor:
    """Normal inputs of the captured ones' spread: they also reach what the model itself never does."""
    shape, spread = captured.inputs.shape, float(captured.inputs.std(correction=0)) or 1.0
    return torch.from_numpy((spread * rng.standard_normal(shape)).astype(np.float32))


def _deviation(candidate: TorchOperator, teacher: TorchOperator, inputs: torch.Tensor) -> float:
    wanted = run(teacher, inputs)
    difference = (run(candidate, inputs) - wanted).abs().max()
    deviation = float(difference / wanted.abs().max().clamp(min=1e-12))
    return deviation if np.isfinite(deviation) else NO_NUMBER
