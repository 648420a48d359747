from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gos_adapt import interleave
from gos_adapt.interleave import FEWEST_SAMPLES, ROUNDS, SAMPLES, WARM_UP, Contender, samples_in_turn
from gos_adapt.quantities import Conditions

if TYPE_CHECKING:
    from collections.abc import Callable

CONDITIONS = Conditions("host", 2, "2026-11-21T12:00:00+00:00", "test")


def contender(sample: Callable[[int], list[float]]) -> Contender:
    return Contender(sample, list, lambda: CONDITIONS)


def nothing() -> None:
    pass


def test_all_take_turns_and_their_first_samples_are_dropped() -> None:
    order = []

    def sampler(name: str) -> Callable[[int], list[float]]:
        def sample(count: int) -> list[float]:
            order.append(name)
            return [9.0, 9.0, *[1e-6] * (count - 2)] if count > 1 else [1e-6]

        return sample

    measured = interleave.interleave({"a": contender(sampler("a")), "b": contender(sampler("b"))}, nothing)
    assert {latency.samples_s for latency in measured.values()} == {(1e-6,) * ROUNDS * SAMPLES}
    assert order == ["a", "a", "b", "b", *["a", "b"] * (ROUNDS - 1)]  # in the first turn once more, to see how long


def test_one_that_fails_is_not_asked_again_and_costs_only_itself() -> None:
    asked = []

    def fail(count: int) -> list[float]:
        asked.append(count)
        raise RuntimeError("first line\nno memory")

    measured = interleave.interleave({"bad": contender(fail), "good": contender(lambda n: [1e-6] * n)}, nothing)
    assert measured["bad"].error == "no memory"
    assert measured["good"].ok
    assert len(asked) == 1


def test_one_that_has_used_up_its_share_sits_turns_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interleave, "LIMIT_S", 0.0)
    measured = interleave.interleave({"slow": contender(lambda count: [1.0] * count)}, nothing)
    assert len(measured["slow"].samples_s) == FEWEST_SAMPLES


def test_a_slow_contender_takes_no_longer_than_its_share():
    assert interleave.duration_s(1e-4) == pytest.approx(ROUNDS * (0.01 + (WARM_UP + SAMPLES) * 1e-4))
    assert interleave.duration_s(1.0) == interleave.LIMIT_S


@pytest.mark.parametrize(("latency_s", "samples"), [(0.04, SAMPLES), (0.07, 5), (2.0, FEWEST_SAMPLES)])
def test_a_slow_contender_takes_fewer_samples_a_turn(latency_s: float, samples: int) -> None:
    assert samples_in_turn(latency_s) == samples
    assert samples == FEWEST_SAMPLES or (samples + WARM_UP) * latency_s * ROUNDS <= interleave.LIMIT_S
