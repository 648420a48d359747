"""What was found: the operators that were put in, by family, where they stand and why they win there.

The reasons are read off the numbers before and after: counted multiply-accumulates, bytes and kernels beside the
measured latency. Where the counts do not explain the latency, that is what is said.

Reference: the thesis' discussion of its operators (4.3.4), which tells early from late layers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from gos_adapt.verdict import EQUAL, comparison_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gos_adapt.result import OperatorSummary, Result, SiteResult

DEPTHS = ("early", "middle", "late")
"""Thirds of the model's sites, in its order."""


class Costs(NamedTuple):
    """What the operators of some sites cost together, for one sample."""

    macs: int
    traffic: int
    kernels: int
    latency_s: float | None


class Finding(NamedTuple):
    """One family of operators that were put in.

    Attributes:
        family: The relative the search started from, and whether it changed it.
        operators: How many different ones.
        sites: How many of them hold one.
        where: Kinds of site and depths, with their numbers.
        before: Of the originals at these sites.
        after: Of the replacements.
        why: One sentence.
    """

    family: str
    operators: int
    sites: int
    where: str
    before: Costs
    after: Costs
    why: str


def findings(result: Result) -> tuple[Finding, ...]:
    """Return the families, the one at most sites first."""
    families: dict[str, list[tuple[str, SiteResult]]] = {}
    for index, site in enumerate(result.sites):
        if site.replacement is not None:
            depth = DEPTHS[len(DEPTHS) * index // len(result.sites)]
            families.setdefault(family(site.lineage), []).append((depth, site))
    found = (_finding(name, places) for name, places in families.items())
    return tuple(sorted(found, key=lambda finding: -finding.sites))


def family(lineage: Sequence[str]) -> str:
    """Name of the relative that a lineage starts from, without its numbers; and whether anything came after."""
    if not lineage:
        return "of unknown origin"
    seed = re.sub(r" (at )?v\d+$", "", lineage[0].removeprefix("seed "))
    named = re.sub(r"\bv\d+\b", "one term", seed)  # "only v3 of the sum"
    name = re.sub(r"( to)? \S*\d\S*", "", named).replace("_", " ")
    return name if len(lineage) == 1 else f"{name}, changed by the search"


def why(before: Costs, after: Costs) -> str:
    """Say in one sentence how the counts go with the latency."""
    pairs = (("multiply-accumulates", before.macs, after.macs), ("bytes", before.traffic, after.traffic))
    fell = [_fewer(name, old, new) for name, old, new in pairs if new < old / (1 + EQUAL)]
    rose = [_more(name, old, new) for name, old, new in pairs if new > old * (1 + EQUAL)]
    if after.kernels != before.kernels:
        (fell if after.kernels < before.kernels else rose).append(f"{_kernels(after)} instead of {before.kernels}")
    if before.latency_s is None or after.latency_s is None:
        gone = "nothing of it is left to time" if after.kernels == 0 else "its latency is not known"
        return f"{_sentence(gone)}: {_joined(fell)}." if fell else f"{_sentence(gone)}."
    speed_up = before.latency_s / after.latency_s
    said = _sentence(f"{comparison_text(speed_up)} the original")
    if speed_up < 1 + EQUAL:
        return f"{said} here{f', in spite of {_joined(fell)}' if fell else ''}."
    spite = f", in spite of {_joined(rose)}" if rose else ""
    if not fell:
        return f"{said}{spite}, though no count fell: the counts do not say why."
    return f"{said} with {_joined(fell)}{spite}{_follows(before, after, speed_up)}."


def _follows(before: Costs, after: Costs, speed_up: float) -> str:
    """Which count fell more nearly as the latency did, when both fell and by different factors."""
    factors = {
        "multiply-accumulates": before.macs / max(1, after.macs),
        "bytes": before.traffic / max(1, after.traffic),
    }
    if min(factors.values()) < 1 + EQUAL:
        return ""
    distance = {name: abs(math.log(factor / speed_up)) for name, factor in factors.items()}
    near, far = sorted(distance, key=lambda name: distance[name])
    if distance[far] - distance[near] < EQUAL:
        return ""
    return f"; its latency is nearer to the {near} than to the {far}"


def _finding(name: str, places: list[tuple[str, SiteResult]]) -> Finding:
    sites = [site for _, site in places]
    replacements = [site.replacement for site in sites if site.replacement is not None]
    before, after = _costs([site.original for site in sites]), _costs(replacements)
    return Finding(
        family=name,
        operators=len({replacement.key for replacement in replacements}),
        sites=len(sites),
        where=_where(places),
        before=before,
        after=after,
        why=why(before, after),
    )


def _where(places: list[tuple[str, SiteResult]]) -> str:
    """For example ``"branch: 2 early, 1 late; conv: 1 middle"``."""
    kinds: dict[str, Counter[str]] = {}
    for depth, site in places:
        kinds.setdefault(site.kind, Counter())[depth] += 1
    return "; ".join(
        f"{kind}: {', '.join(f'{depths[depth]} {depth}' for depth in DEPTHS if depths[depth])}"
        for kind, depths in kinds.items()
    )


def _costs(operators: Sequence[OperatorSummary]) -> Costs:
    """The sum; no latency when one was not measured."""
    measured = all(operator.latency.ok for operator in operators)
    return Costs(
        macs=sum(operator.macs.value for operator in operators),
        traffic=sum(operator.traffic.value for operator in operators),
        kernels=sum(operator.kernels.value for operator in operators),
        latency_s=sum(operator.latency.median_s for operator in operators) if measured else None,
    )


def _fewer(name: str, old: int, new: int) -> str:
    return f"{old / new:.3g}x fewer {name}" if new else f"no {name}"


def _more(name: str, old: int, new: int) -> str:
    return f"{new / old:.3g}x more {name}" if old else f"{name} where there were none"


def _kernels(costs: Costs) -> str:
    return f"{costs.kernels or 'no'} kernel{'s' * (costs.kernels != 1)}"


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]
