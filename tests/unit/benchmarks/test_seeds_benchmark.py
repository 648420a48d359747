"""The spread of several adaptations."""

from dataclasses import replace

from example_result import example_result, failed, without_task
from seeds import spread


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_seed_has_a_row_and_the_spread_follows() -> None:
    result = example_result()
    assert result.accuracy is not None
    worse = replace(result.accuracy, adapted=replace(result.accuracy.adapted, value=0.9032))
    other = replace(result, options=replace(result.options, seed=1), accuracy=worse)
    head, _, *rows = map(cells, spread([result, other]))
    assert [row[0] for row in rows] == ["seed 0", "seed 1", "least", "mean", "most"]
    assert [row[head.index("adapted")] for row in rows] == ["0.9132", "0.9032", "0.9032", "0.9082", "0.9132"]
    assert {row[head.index("speed-up, medians")] for row in rows} == {"1.40x"}


def test_what_was_not_measured_is_a_dash() -> None:
    result = without_task()
    silent = replace(result, latency=replace(result.latency, adapted=failed("out of memory")))
    assert all(cell == "–" for row in spread([silent])[2:] for cell in cells(row)[1:])
