"""Which replacements together reach a latency at the least loss: a 0-1 linear programme.

    minimise    Σ loss_i x_i
    subject to  Σ saves_i x_i ≥ saving
                Σ x_i over the options that cover a node ≤ 1, for every node of the model
                Σ x_i ≤ limit,  x_i in {0, 1}

Savings and losses are added up as if sites did not influence each other. Losses so added find a set to begin with.
Savings come near, so a set is measured, and another saving asked of the programme, until one just saves enough.
Solved by HiGHS, nearly exactly, through `scipy.optimize.milp`.
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
    from collections.abc import Callable, Iterator, Sequence

MEASURED = 6
"""Sets measured at most until one saves just enough."""
NEAR = 0.03
"""Of the saving wanted: a set that saves no more than this above it is near enough."""
STEP = 0.85
"""Of a saving that was too much, the least that is asked for next: sets hardly smaller come before far smaller ones."""
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


@dataclass(frozen=True)
class MeasuredSet:
    """A set of options, and what it saves.

    Attributes:
        chosen: Indices of its options.
        added_s: Seconds it saves, added up.
        saved_s: Seconds it saves, measured.
        loss: Added up.
        enough: Whether it saves what was wanted.
    """

    chosen: tuple[int, ...]
    added_s: float
    saved_s: float
    loss: float
    enough: bool

    @property
    def overestimate(self) -> float:
        """What is added up of what is measured; where that is little, of a tenth of what is added up."""
        return self.added_s / max(self.saved_s, 0.1 * self.added_s)


def measured_sets(
    options: Sequence[Option],
    saving_s: float,
    limit: int | None,
    measure: Callable[[tuple[int, ...]], float | None],
    overestimate: float = 1.0,
) -> Iterator[MeasuredSet]:
    """Measure cheapest sets of different savings until one saves `saving_s`, and hardly more.

    Args:
        options: To choose from.
        saving_s: To reach, above 0.
        limit: Most options chosen.
        measure: Seconds that a set saves; `None` when that cannot be measured (any more).
        overestimate: What sets are expected to save, added up, of what they save.

    Yields:
        Each set once, when it was measured; none when no set saves anything, or none could be measured in time.
    """
    measured: dict[tuple[int, ...], MeasuredSet] = {}
    most_s = largest_saving(options, limit)
    wanted_s, too_little_s, enough_s = min(saving_s * overestimate, most_s), 0.0, most_s
    reached = False
    while len(measured) < MEASURED and (not reached or enough_s - too_little_s > NEAR * saving_s):
        found = cheapest_set(options, wanted_s, limit)
        if isinstance(found, Rejection) or not found:
            break
        chosen = tuple(found)
        if chosen not in measured:
            saved_s = measure(chosen)
            if saved_s is None:
                break
            added_s = sum(options[i].saves_s for i in chosen)
            enough = saved_s >= (1 - ROUNDING) * saving_s
            loss = sum(options[i].loss for i in chosen)
            measured[chosen] = MeasuredSet(chosen, added_s, saved_s, loss, enough)
            yield measured[chosen]
        last = measured[chosen]
        if last.enough:
            reached, enough_s = True, wanted_s
            if last.saved_s <= (1 + NEAR) * saving_s:
                break
        elif wanted_s >= most_s:
            break
        else:
            too_little_s = max(too_little_s, last.added_s)
        wanted_s = saving_s * last.overestimate
        if not too_little_s < wanted_s < enough_s:
            wanted_s = max((too_little_s + enough_s) / 2, STEP * enough_s) if reached else most_s


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
