from __future__ import annotations

from dataclasses import replace

import pytest
from example_result import example_result, failed, without_replacements

from gos_adapt.report.found import Costs, family, findings, why


def test_operators_are_gathered_by_family_with_their_sums_and_places() -> None:
    separable, identity = findings(example_result())
    assert (separable.family, separable.operators, separable.sites) == (
        "depthwise separable, changed by the search",
        1,
        3,
    )
    assert separable.where == "conv: 2 early, 1 middle"
    assert identity.where == "branch: 1 late"
    assert (separable.before.macs, separable.after.macs) == (3 * 2_367_488, 3 * 344_064)
    assert (separable.before.kernels, separable.after.kernels) == (3, 6)
    assert separable.before.latency_s == pytest.approx(3 * 35.2e-6)


def test_forms_of_one_family_are_counted() -> None:
    result = example_result()
    first = result.sites[0]
    assert first.replacement
    other = replace(first, replacement=replace(first.replacement, key="another"))
    assert findings(replace(result, sites=(other, *result.sites[1:])))[0].operators == 2


def test_one_site_that_was_not_measured_leaves_the_family_without_a_latency() -> None:
    result = example_result()
    first = result.sites[0]
    unmeasured = replace(first, original=replace(first.original, latency=failed("no")))
    finding = findings(replace(result, sites=(unmeasured, *result.sites[1:])))[0]
    assert finding.before.latency_s is None
    assert finding.why.startswith("Its latency is not known: 6.88x fewer multiply-accumulates")


def test_nothing_replaced_is_nothing_found() -> None:
    assert findings(without_replacements()) == ()


@pytest.mark.parametrize(
    ("lineage", "name"),
    [
        (("seed low_rank_out 8 at v2",), "low rank out"),
        (("seed narrowed to 4/8 at v2", "add node: relu after v3"), "narrowed, changed by the search"),
        (("seed depthwise_5×5_pointwise at v2",), "depthwise 5×5 pointwise"),
        (("seed only v3 of the sum v10",), "only one term of the sum"),
        (("seed zero",), "zero"),
        (("seed original", "delete node: v4 (relu)"), "original, changed by the search"),
        ((), "of unknown origin"),
    ],
)
def test_a_family_is_named_after_its_seed_without_numbers(lineage: tuple[str, ...], name: str) -> None:
    assert family(lineage) == name


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (
            Costs(800, 400, 1, 4e-6),
            Costs(100, 200, 2, 2e-6),
            "2.00x faster than the original with 8x fewer multiply-accumulates and 2x fewer bytes, in spite of 2 "
            "kernels instead of 1; its latency is nearer to the bytes than to the multiply-accumulates.",
        ),
        (
            Costs(800, 400, 3, 4e-6),
            Costs(0, 400, 1, 2e-6),
            "2.00x faster than the original with no multiply-accumulates and 1 kernel instead of 3.",
        ),
        (
            Costs(800, 400, 1, 4e-6),
            Costs(1600, 400, 1, 2e-6),
            "2.00x faster than the original, in spite of 2x more multiply-accumulates, though no count fell: the "
            "counts do not say why.",
        ),
        (
            Costs(800, 400, 1, 4e-6),
            Costs(400, 400, 1, 4e-6),
            "As fast as the original here, in spite of 2x fewer multiply-accumulates.",
        ),
        (Costs(800, 400, 1, 4e-6), Costs(800, 400, 1, 8e-6), "2.00x slower than the original here."),
        (
            Costs(800, 400, 1, 4e-6),
            Costs(0, 0, 0, None),
            "Nothing of it is left to time: no multiply-accumulates, no bytes and no kernels instead of 1.",
        ),
        (Costs(0, 400, 1, None), Costs(5, 400, 1, 2e-6), "Its latency is not known."),
        (
            Costs(0, 400, 1, 4e-6),
            Costs(5, 200, 1, 2e-6),
            "2.00x faster than the original with 2x fewer bytes, in spite of multiply-accumulates where there "
            "were none.",
        ),
    ],
)
def test_the_reason_is_read_off_the_numbers(before: Costs, after: Costs, sentence: str) -> None:
    assert why(before, after) == sentence
