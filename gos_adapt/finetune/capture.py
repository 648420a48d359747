"""What a site reads on real samples: the material that candidates are fitted to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gos_adapt.model.torch_executor import TorchExecutor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from gos_adapt.model.model import Model, Site

MAX_BYTES = 2**27
"""Of one site's inputs and outputs together; larger maps are captured on fewer samples."""
MIN_SAMPLES = 8
BATCH = 64


@dataclass(frozen=True)
class Activations:
    """A site's material for fitting.

    Attributes:
        inputs: ``(n, ...)``, what the candidate will read.
        teacher_inputs: ``(n, ...)``, what the site's own operator reads on the same samples. The two differ when sites
            before this one are replaced already: the candidate then learns to undo their error.
    """

    inputs: Tensor
    teacher_inputs: Tensor


def capture(model: Model, sites: Sequence[Site], samples: np.ndarray) -> dict[str, Activations]:
    """Run `model` on preprocessed samples ``(n, ...)`` and keep what each site reads, at most `MAX_BYTES` a site."""
    executor = TorchExecutor(model.proto)
    inputs = read(executor, model.inputs[0].name, [site.input for site in sites], samples)
    kept = {}
    for site, values in zip(sites, inputs, strict=True):
        part = values[: sample_limit(site)].clone()
        kept[site.name] = Activations(part, part)
    return kept


def sample_limit(site: Site) -> int:
    """How many samples of a site's activations fit in `MAX_BYTES`."""
    return max(MIN_SAMPLES, MAX_BYTES // (4 * (math.prod(site.input_shape) + math.prod(site.output_shape))))


def read(executor: TorchExecutor, source: str, names: Sequence[str], samples: np.ndarray) -> tuple[Tensor, ...]:
    """Compute the tensors `names` from `samples` of tensor `source`, in batches."""
    with torch.no_grad():
        batches = [executor.compute({source: batch}, names) for batch in torch.split(torch.from_numpy(samples), BATCH)]
    return tuple(torch.cat(values) for values in zip(*batches, strict=True))
