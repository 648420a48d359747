"""Random model inputs: what is fed where no data is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gos_adapt.model.model import Model


def random_array(shape: Sequence[int], dtype: str, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return a standard normal array, or zeros and ones for integers and booleans: any table has two rows."""
    if np.issubdtype(np.dtype(dtype), np.floating):
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def random_arrays(parameters: Sequence[tuple[Sequence[int], str]]) -> list[np.ndarray[Any, Any]]:
    """Return a random array for each (shape, dtype); always the same ones."""
    rng = np.random.default_rng(0)
    return [random_array(shape, dtype, rng) for shape, dtype in parameters]


def random_samples(model: Model, count: int) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Return `count` random inputs of a model by name, at batch 1; always the same ones."""
    rng = np.random.default_rng(0)
    return [{spec.name: random_array(spec.at_batch(1), spec.dtype, rng) for spec in model.inputs} for _ in range(count)]
