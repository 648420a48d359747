"""Adapt a model several times, each time with another seed, and print how far apart the results are.

    python benchmarks/seeds.py MODEL --target host --task TASK --budget 40m [--seeds N] --out FOLDER

Everything but --seeds and --out goes to `adapt` as it is. Each run has a folder of its own, FOLDER/seed-0 and so on:
one that is finished is not run again, one that was killed goes on. Prints a Markdown table: the speed-up over our own
compiled original by medians and by best samples, and the accuracy on the test split, before and after (all measured).
Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from markdown_table import table

from gos_adapt.errors import AdaptError
from gos_adapt.result import read_result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gos_adapt.result import Result

SUMMARIES: dict[str, Callable[[Sequence[float]], float]] = {"least": min, "mean": fmean, "most": max}


def main() -> int:
    """Run what is not finished and print the table; the exit code is that of the first run that fails."""
    options, words = _options()
    results = []
    for seed in range(options.seeds):
        folder = options.out / f"seed-{seed}"
        if not (folder / "result.json").exists():
            command = [sys.executable, "-m", "gos_adapt.cli", *words, "--seed", str(seed), "--out", str(folder)]
            if code := subprocess.run(command, check=False).returncode:
                return code
        try:
            results.append(read_result(folder / "result.json"))
        except AdaptError as error:
            print(error, file=sys.stderr)
            return 1
    print("\n".join([_conditions(results[0]), "", *spread(results)]))
    return 0


def spread(results: Sequence[Result]) -> list[str]:
    """Lines of a table: one row a seed, and the least, the mean and the most of each column."""
    columns: dict[str, tuple[Callable[[Result], float | None], str]] = {
        "speed-up, medians": (lambda result: _speed_up(result, "median"), "{:.2f}x"),
        "best samples": (lambda result: _speed_up(result, "best"), "{:.2f}x"),
        "latency": (_latency_ms, "{:.3f} ms"),
        "original": (lambda result: result.accuracy and result.accuracy.original.value, "{:.4f}"),
        "adapted": (lambda result: result.accuracy and result.accuracy.adapted.value, "{:.4f}"),
        "lost": (lambda result: result.accuracy and result.accuracy.lost, "{:.4f}"),
    }
    rows = [[f"seed {result.options.seed}"] for result in results] + [[name] for name in SUMMARIES]
    for of, form in columns.values():
        numbers = [of(result) for result in results]
        known = [number for number in numbers if number is not None]
        numbers += [summary(known) if known else None for summary in SUMMARIES.values()]
        for row, number in zip(rows, numbers, strict=True):
            row.append("–" if number is None else form.format(number))
    return table(("", *columns), rows)


def _conditions(result: Result) -> str:
    budget_s, machine = result.options.budget_s, result.environment
    budget = "no budget" if budget_s is None else f"{budget_s:g} s a run"
    return f"{result.model.name}, {budget}, {machine.cpu}, {machine.cores} cores, {machine.date}"


def _speed_up(result: Result, of: str) -> float | None:
    ratios = result.latency.speed_up("original")
    return ratios and float(getattr(ratios, of))


def _latency_ms(result: Result) -> float | None:
    adapted = result.latency.adapted
    return 1e3 * adapted.median_s if adapted.ok else None


def _options() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 101), metavar="N", help="how many runs (3)")
    parser.add_argument("--out", type=Path, required=True, help="for the run folders")
    return parser.parse_known_args()


if __name__ == "__main__":
    sys.exit(main())
