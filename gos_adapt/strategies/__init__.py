"""Strategies: how the sites to replace and their replacements are chosen across a model.

`iterative`: the worst operator first, one group after the other (thesis, algorithm 4). `joint`, called global: a table
of what every replacement saves and costs everywhere, and one integer program over it.
"""

from __future__ import annotations

from gos_adapt.strategies.iterative import Iterative
from gos_adapt.strategies.joint import Joint

Strategy = Iterative | Joint
STRATEGIES: dict[str, type[Strategy]] = {"iterative": Iterative, "global": Joint}
