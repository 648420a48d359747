"""Which replacements together reach a latency at the least loss: a 0-1 linear programme.

    minimise    Σ loss_i x_i
    subject to  Σ saves_i x_i ≥ saving
                Σ x_i over the options that cover a node ≤ 1, for every node of the model
                Σ x_i ≤ limit,  x_i in {0, 1}

Savings and losses are added up as if sites did not influence each other. For latencies that holds within the noise; for
losses it ranks sets, it does not predict them. Solved exactly by HiGHS through `scipy.optimize.milp`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_array

from gos_adapt.errors import Rejection

if TYPE_CHECKING:
    from collections.abc import Sequence

ROUNDING = 1e-9
"""Of what is wanted: sums of floats may miss it by so much."""
SECONDS = 10.0
"""For the solver; a model of a hundred sites takes it milliseconds."""


@dataclass(frozen=True)
class Option:
    """One replacement of one site.

    Attributes:
        nodes: Output names of the ONNX nodes it covers: two options that share one exclude each other.
        saves_s: Seconds it takes off the model's latency.
        loss: What it costs, at least 0.
    """

    nodes: frozenset[str]
    saves_s: float
    loss: float


def cheapest_set(options: Sequence[Option], saving_s: float, limit: int | None = None) -> list[int] | Rejection:
    """Return the indices of the options that together save `saving_s` at the least loss.

    Args:
        options: To choose from.
        saving_s: To reach.
        limit: Most options chosen.

    Returns:
        The indices in order; or a `Rejection` when no set saves so much.
    """
    if saving_s <= 0:
        return []
    losses = np.array([option.loss for option in options])
    # in units of what is wanted: seconds are far below the solver's tolerances
    enough = LinearConstraint(np.array([[option.saves_s / saving_s for option in options]]), lb=1 - ROUNDING)
    found = _solve(options, losses, limit, enough) if options else None
    return Rejection(f"no set of {len(options)} replacements saves {saving_s:.3g} s") if found is None else found


def largest_saving(options: Sequence[Option], limit: int | None = None) -> float:
    """Return the seconds that the options can save together at most."""
    found = _solve(options, -np.array([option.saves_s for option in options]), limit) if options else None
    return sum(options[i].saves_s for i in found or ())


def _solve(
    options: Sequence[Option], cost: np.ndarray[Any, Any], limit: int | None, *more: LinearConstraint
) -> list[int] | None:
    constraints = [_exclusions(options), *more]
    if limit is not None:
        constraints.append(LinearConstraint(np.ones((1, len(options))), ub=limit))
    found = milp(
        cost / (np.abs(cost).max() or 1.0),
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"time_limit": SECONDS},
    )
    return None if found.x is None else [int(i) for i in np.flatnonzero(found.x > 0.5)]


def _exclusions(options: Sequence[Option]) -> LinearConstraint:
    covering: defaultdict[str, list[int]] = defaultdict(list)
    for i, option in enumerate(options):
        for node in option.nodes:
            covering[node].append(i)
    groups = sorted({tuple(members) for members in covering.values()})
    matrix = lil_array((len(groups), len(options)))
    for row, members in enumerate(groups):
        matrix[row, list(members)] = 1
    return LinearConstraint(matrix.tocsr(), ub=1)
