"""The verdict: one sentence that says what was gained, what it cost, and first of all what was not gained.

Also the words for numbers that the verdict and the report share: this is where seconds become milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gos_adapt.result import Accuracy, Measured, Result

EQUAL = 0.02
"""Latencies that differ by less are called equal: two runs on one machine repeat no better."""


def verdict(result: Result) -> str:
    """Say in one sentence what the numbers of `result` amount to."""
    if not result.latency.adapted.ok:
        return f"No latency to report: the delivered model was not measured ({result.latency.adapted.error})."
    clauses = _with_goal(result, _gain_clauses(result) if result.replaced else _nothing_clauses(result))
    sentence = "; ".join(clauses)
    return f"{sentence[0].upper()}{sentence[1:]}."


def latency_text(seconds: float) -> str:
    """Seconds in the unit that a person would use, three significant digits: ``"0.412 ms"``, ``"-3.10 µs"``."""
    scale, unit = next(
        ((scale, unit) for scale, unit in ((1, "s"), (1e3, "ms")) if abs(seconds) * scale >= 0.1), (1e6, "µs")
    )
    value = seconds * scale
    decimals = 2 if abs(value) >= 1 else 3
    decimals = 1 if abs(value) >= 10 else decimals
    return f"{value:.{0 if abs(value) >= 100 else decimals}f} {unit}".replace("-", "−")


def comparison_text(speed_up: float) -> str:
    """A speed-up as words: ``"1.43x faster than"``, ``"1.16x slower than"``, ``"as fast as"``."""
    if abs(speed_up - 1) < EQUAL:
        return "as fast as"
    return f"{speed_up:.2f}x faster than" if speed_up > 1 else f"{1 / speed_up:.2f}x slower than"


def metric_text(value: Measured) -> str:
    """A metric's value: fractions as per cent, anything else with its unit."""
    if value.unit == "fraction":
        return f"{100 * value.value:.2f} %"
    return f"{value.value:.4g}" if value.unit == "1" else f"{value.value:.4g} {value.unit}"


def points_text(fraction: float) -> str:
    """A difference of two fractions, in points of a hundred: ``"0.4 points"``."""
    amount = f"{100 * fraction:.2f}".rstrip("0").rstrip(".")
    return f"{amount} point{'' if amount == '1' else 's'}"


def accuracy_text(accuracy: Accuracy | None) -> str:
    """What happened to the accuracy."""
    if accuracy is None:
        return "accuracy not measured (no task)"
    if accuracy.original.unit != "fraction":
        return f"{accuracy.metric} {metric_text(accuracy.original)} → {metric_text(accuracy.adapted)}"
    if round(accuracy.lost, 4) == 0:
        return f"no {accuracy.metric} lost"
    return f"{points_text(abs(accuracy.lost))} of {accuracy.metric} {'lost' if accuracy.lost > 0 else 'gained'}"


def _with_goal(result: Result, clauses: list[str]) -> list[str]:
    """Say whether what was asked for is reached: first if not, last if so."""
    if result.excess is None:
        return clauses
    options = result.options
    goal = f"{options.speed_up:g}x" if options.speed_up is not None else latency_text(options.target_latency_s or 0.0)
    if result.reached:
        return [*clauses, f"the {goal} asked for is reached"]
    if result.excess < EQUAL:
        return [f"the {goal} asked for is missed by {100 * result.excess:.2g} %, within noise", *clauses]
    return [f"the {goal} asked for is not reached", *clauses]


def _gain_clauses(result: Result) -> list[str]:
    """A baseline that was not beaten comes first; else the strongest baseline that is not ours comes last."""
    latency = result.latency
    against = _comparisons(result)
    clauses = []
    if "original" in against:
        change = f"{latency_text(latency.original.median_s)} → {latency_text(latency.adapted.median_s)}"
        clauses.append(f"{against.pop('original')} ({change}), {accuracy_text(result.accuracy)}")
    else:
        clauses.append(f"{latency_text(latency.adapted.median_s)} after adaptation, {accuracy_text(result.accuracy)}")
    return _place(result, clauses, against)


def _nothing_clauses(result: Result) -> list[str]:
    latency, against = result.latency, _comparisons(result)
    against.pop("original", None)
    candidates = [candidate for group in result.search for candidate in group.candidates]
    if not any(site.searched for site in result.sites):
        why = "nothing to gain: no site is worth replacing"
    elif not any(candidate.feasible for candidate in candidates):
        why = "nothing was replaced: no candidate met the constraints"
    else:
        why = "nothing was replaced: no feasible candidate made the model faster"
    return _place(
        result, [f"{why}, and the compiled original is delivered ({latency_text(latency.adapted.median_s)})"], against
    )


def _comparisons(result: Result) -> dict[str, str]:
    """Words for every baseline that was measured, by field name."""
    latency = result.latency
    ratios = {name: latency.speed_up(name) for name in latency.BASELINES}
    return {
        name: f"{comparison_text(ratio.median)} {latency.BASELINES[name]}" for name, ratio in ratios.items() if ratio
    }


def _place(result: Result, clauses: list[str], against: dict[str, str]) -> list[str]:
    """Put the strongest foreign baseline first if it won, last if it lost; nothing when none was measured."""
    latency = result.latency
    if not against:
        return clauses
    rival = min(against, key=lambda name: latency.baselines[name].median_s)
    if rival == "onnxruntime_int8" and result.accuracy and result.accuracy.onnxruntime_int8:
        price = f" (which has {metric_text(result.accuracy.onnxruntime_int8)} {result.accuracy.metric})"
    else:
        price = ""
    ratio = latency.baselines[rival].median_s / latency.adapted.median_s
    clause = f"{against[rival]}{price}"
    return [*clauses, clause] if ratio >= 1 + EQUAL else [clause, *clauses]
