from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from example_result import (
    BRANCH,
    IDENTITY,
    chosen_jointly,
    example_result,
    failed,
    measured,
    without_feasible_candidate,
    without_int8,
    without_replacements,
    without_task,
)

from gos_adapt.report import facts
from gos_adapt.report.pictures import pareto_scatter, site_bars
from gos_adapt.result import Measured
from gos_adapt.verdict import comparison_text, latency_text

if TYPE_CHECKING:
    from gos_adapt.result import Result


def test_headlines_give_the_whole_model_before_and_after() -> None:
    assert [tuple(row) for row in facts.headlines(example_result())] == [
        ("Latency", "0.420 ms", "0.300 ms", "measured"),
        ("Top-1", "91.72 %", "91.32 %", "measured"),
        ("Parameters", "269\u202f722", "172\u202f000", "counted"),
        ("Multiply-accumulates of the sites", "40\u202f551\u202f040", "28\u202f400\u202f000", "counted"),
    ]


def test_without_a_task_no_accuracy_is_shown_anywhere() -> None:
    result = without_task()
    names = [row.name for row in facts.headlines(result)]
    assert names == ["Latency", "Parameters", "Multiply-accumulates of the sites"]
    assert {row.accuracy for row in facts.baselines(result)} == {""}
    assert any("No task was given" in limit for limit in facts.limits(result))


def test_baselines_compare_the_adapted_model_with_each() -> None:
    rows = facts.baselines(example_result())
    assert [(row.name, row.role, row.comparison, row.accuracy) for row in rows] == [
        ("Adapted model", "adapted", "", "91.32 %"),
        ("The compiled original", "baseline", "1.40x faster than", "91.72 %"),
        ("ONNX Runtime fp32", "baseline", "1.10x faster than", "91.72 %"),
        ("ONNX Runtime int8", "baseline", "1.50x faster than", "91.61 %"),
    ]
    assert rows[1].speed_up_best == pytest.approx(0.40 / 0.28)


def test_a_missing_baseline_keeps_its_row_and_its_reason() -> None:
    result = without_int8()
    row = facts.baselines(result)[-1]
    assert (row.speed_up_median, row.comparison, row.accuracy) == (None, "", "")
    assert row.measurement.error == "the quantiser does not take 3-D convolutions"
    assert any("the quantiser does not take 3-D convolutions" in limit for limit in facts.limits(result))


def test_sites_are_numbered_in_the_order_of_the_model() -> None:
    rows = facts.site_rows(example_result())
    assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row.state for row in rows] == ["replaced"] * 3 + ["left alone", "retrained", "replaced"]
    assert [count.value for count in rows[0].macs] == [2_367_488, 344_064]
    assert rows[3].after is None
    assert rows[3].macs[0] == rows[3].macs[1]


def test_the_picture_of_sites_shows_the_slowest_measured_ones() -> None:
    rows = facts.site_rows(example_result())
    many = [replace_measurement(row, i) for i, row in enumerate(rows * 6)]
    slowest = facts.slowest_sites([*many, rows[0]._replace(before=failed("no"))])
    assert len(slowest) == facts.BARS
    latencies = [row.before.median_s for row in slowest]
    assert latencies == sorted(latencies, reverse=True)


def replace_measurement(row: facts.SiteRow, index: int) -> facts.SiteRow:
    samples = tuple(sample * (1 + index) for sample in row.before.samples_s)
    return row._replace(before=replace(row.before, samples_s=samples))


def test_the_front_shows_every_timed_candidate_and_counts_the_others() -> None:
    pareto, _ = facts.paretos(example_result())
    assert (pareto.price, pareto.original_price) == ("parameters", 9_248)
    assert [point.status for point in pareto.points] == [
        "chosen",
        "front",
        "front",
        "dominated",
        "infeasible",
        "infeasible",
        "infeasible",
    ]
    assert [point.outcome for point in pareto.points[4:]] == ["accuracy", "accuracy", "measured latency"]
    assert pareto.points[0].latency_change_s == pytest.approx(-23e-6)
    assert pareto.unpriced == 168 - 7
    assert [point.price for point in pareto.points] == [point.parameters for point in pareto.points]


def test_candidates_of_the_global_strategy_are_shown_by_their_loss() -> None:
    pareto, _ = facts.paretos(chosen_jointly())
    assert (pareto.price, pareto.original_price) == ("loss", 0)
    assert [point.price for point in pareto.points] == pytest.approx([0.001, 0.01, 0.1, 1.0, 10.0, 100.0])
    assert pareto.unpriced == 168 - 6
    top = pareto_scatter(pareto).layout.yaxis.range[1]
    assert 0.1 < top < 1.0  # the front ends at 0.1, and what lies far above it must not flatten it


def test_the_line_joins_the_front_and_not_what_was_chosen_beside_it() -> None:
    result = example_result()
    chosen, *others = result.search[0].candidates
    beside = replace(result.search[0], candidates=(replace(chosen, on_front=False), *others))
    for group, joined in ((result.search[0], 3), (beside, 2)):
        pareto = facts.paretos(replace(result, search=(group,)))[0]
        assert pareto.points[0].status == "chosen"
        (line,) = [trace for trace in pareto_scatter(pareto).data if trace.mode == "lines"]
        assert len(line.x) == joined


def test_the_axis_of_losses_reaches_what_was_chosen() -> None:
    result = chosen_jointly()
    candidates = tuple(replace(c, chosen=k == 3, on_front=k == 0) for k, c in enumerate(result.search[0].candidates))
    pareto = facts.paretos(replace(result, search=(replace(result.search[0], candidates=candidates),)))[0]
    assert pareto_scatter(pareto).layout.yaxis.range[1] > pareto.points[3].price == 1.0


def test_a_site_with_no_kernel_left_has_words_where_others_have_a_bar() -> None:
    rows = facts.site_rows(example_result())
    gone = rows[0]._replace(after=failed("no kernel of its own: it was folded away"))
    _, replacements = site_bars((gone, *rows[1:])).data
    assert list(replacements.y) == [row.label for row in rows if row.after]
    assert list(replacements.text) == ["no kernel of its own", *[""] * (len(replacements.y) - 1)]
    assert replacements.x[0] == 0 < replacements.x[1]
    assert "no kernel of its own" in replacements.hovertext[0]


def test_what_may_be_lost_is_said_in_the_terms_of_the_metric() -> None:
    result = example_result()
    assert result.accuracy
    error = replace(
        result.accuracy,
        metric="mean-absolute-error",
        higher_is_better=False,
        original=Measured(2.0, "units of the target"),
    )
    for accuracy, words in (
        (result.accuracy, "1 point"),
        (error, "1 % of the error"),
        (None, "not used, because no task was given"),
    ):
        free = replace(result.options, speed_up=None, target_latency_s=None)
        rows = dict(facts.environment(replace(result, accuracy=accuracy, options=free)))
        assert rows["Accuracy that may be lost"] == words


def test_a_latency_asked_for_goes_before_the_accuracy_only_where_replacements_are_chosen_together() -> None:
    result = example_result()
    for strategy, words in (
        ("global", "as much as the latency asked for costs; more than 1 point is noted"),
        ("iterative", "1 point"),
    ):
        asked = replace(result.options, strategy=strategy, speed_up=2.0)
        rows = dict(facts.environment(replace(result, options=asked)))
        assert rows["Accuracy that may be lost"] == words


def test_outcomes_count_every_proposal_of_every_search() -> None:
    table = facts.outcomes(example_result())
    assert table.groups == ("conv 32×16×16", "branch 64×8×8")
    assert table.rows[0] == ("ill-typed", (41, 3), 44 / 182, None)
    assert ("measured latency", (1, 1), 2 / 182, 24.0) in table.rows
    assert ("fit", (1, 0), 1 / 182, 9.0) in table.rows
    assert table.totals == (168, 14)
    assert tuple(map(sum, zip(*(row.counts for row in table.rows), strict=True))) == table.totals
    assert sum(row.share for row in table.rows) == pytest.approx(1)
    assert table.seconds == 70.0


def test_the_noise_of_the_profile_is_said_in_numbers() -> None:
    result = example_result()
    # 0.40 0.42 0.44 ms: quartiles 0.41 and 0.43
    assert "3 samples of the whole, the median lies 5.0 % above the best" in facts.noise(result)
    assert "within 20.0 µs, 4.8 % of the median" in facts.noise(result)
    assert facts.noise(replace(result, profile=replace(result.profile, whole=failed("no")))) == ""
    assert facts.noise(replace(result, profile=replace(result.profile, whole=measured(1.0)))) == ""


def test_sites_with_the_same_replacement_are_shown_together() -> None:
    together, alone = facts.replaced_operators(example_result())
    assert together.numbers == (1, 2, 3)
    assert together.comparison == "2.84x faster than the original here"
    assert together.lineage == ("seed depthwise_separable", "mutate kernel 5x5 → 3x3")
    assert alone.numbers == (6,)


def test_an_operator_is_drawn_with_every_node_and_every_edge() -> None:
    drawing = facts.drawing(BRANCH)
    assert drawing
    assert [box.role for box in drawing.boxes].count("weight") == 4
    assert drawing.boxes[-1] == facts.Box("relu", (), "64×8×8", "result")
    assert drawing.boxes[2].settings == ("channels 64", "kernel 3×3", "padding 1×1×1×1")
    assert (0, 10) in drawing.arrows
    assert (9, 10) in drawing.arrows
    assert len(drawing.arrows) == 12
    identity = facts.drawing(IDENTITY)
    assert identity
    assert identity.arrows == ((0, 1),)


def test_text_that_is_no_operator_is_not_drawn() -> None:
    assert facts.drawing("v0 = input 3x3\nv1 = explode(v0)") is None


@pytest.mark.parametrize("result", [without_replacements(), without_feasible_candidate()])
def test_nothing_replaced_leaves_nothing_to_draw(result: Result) -> None:
    assert facts.replaced_operators(result) == ()
    assert {row.after for row in facts.site_rows(result)} == {None}


def test_a_searched_site_that_kept_its_operator_says_so() -> None:
    assert {row.state for row in facts.site_rows(without_feasible_candidate())} == {"searched", "left alone"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.5, "1.50 s"),
        (0.0123, "12.3 ms"),
        (4.12e-4, "0.412 ms"),
        (3.1e-6, "3.10 µs"),
        (-8e-6, "−8.00 µs"),
        (120.0, "120 s"),
    ],
)
def test_latencies_are_written_with_three_digits_and_a_unit(seconds: float, text: str) -> None:
    assert latency_text(seconds) == text


def test_comparisons_say_faster_slower_or_equal() -> None:
    assert [comparison_text(ratio) for ratio in (1.43, 0.5, 1.01, 0.99)] == [
        "1.43x faster than",
        "2.00x slower than",
        "as fast as",
        "as fast as",
    ]


def test_durations_read_like_durations() -> None:
    assert facts.duration_text(3.21) == "3.2 s"
    assert facts.duration_text(725.2) == "12 min 5 s"
