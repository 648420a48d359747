"""A strategy on this machine, at work on a residual model whose replacements save more than the noise."""

from __future__ import annotations

import math
from contextlib import contextmanager

from example_models import normal
from example_search import task_for

from gos_adapt.progress import Silent
from gos_adapt.run_folder import RunFolder

INPUTS = normal(384, 3, 24, 24, seed=6)


@contextmanager
def opened(strategy, model, workbench, path, kept, request, *, seconds=math.inf):
    """The strategy in a folder, with so much time left; what it delivers is put in `kept`."""
    with RunFolder.open(path, {"test": strategy.__name__}, "resume") as folder:
        yield strategy(
            model,
            task_for(model, INPUTS),
            request,
            workbench,
            folder,
            Silent(),
            lambda: seconds,
            lambda _adapted, replacements: kept.append(replacements),
        )
