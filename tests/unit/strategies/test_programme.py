"""The integer program against trying every set."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gos_adapt.errors import Rejection
from gos_adapt.strategies.programme import MEASURED, Option, cheapest_set, largest_saving, measured_sets

NODES = "abcdef"
options = st.lists(
    st.builds(
        Option,
        nodes=st.frozensets(st.sampled_from(NODES), min_size=1, max_size=3),
        saves_s=st.integers(-3, 9).map(lambda n: n * 1e-6),
        loss=st.integers(0, 9).map(float),
    ),
    max_size=7,
)
limits = st.none() | st.integers(1, 4)
reproducibly = settings(derandomize=True, deadline=None)


def allowed_sets(given_options, limit):
    """Every set of options without a shared node."""
    for size in range(min(len(given_options), limit or len(given_options)) + 1):
        for chosen in combinations(range(len(given_options)), size):
            covered = [name for i in chosen for name in given_options[i].nodes]
            if len(covered) == len(set(covered)):
                yield chosen


def saving(given_options, chosen):
    return sum(given_options[i].saves_s for i in chosen)


def loss(given_options, chosen):
    return sum(given_options[i].loss for i in chosen)


@reproducibly
@given(options, st.integers(1, 25).map(lambda n: n * 1e-6), limits)
def test_the_cheapest_set_is_the_best_of_all_sets(given_options, wanted_s, limit):
    enough = [c for c in allowed_sets(given_options, limit) if saving(given_options, c) >= wanted_s - 1e-12]
    found = cheapest_set(given_options, wanted_s, limit)
    if not enough:
        assert isinstance(found, Rejection)
        return
    assert not isinstance(found, Rejection)
    assert tuple(found) in set(enough)
    assert loss(given_options, found) == min(loss(given_options, c) for c in enough)


@reproducibly
@given(options, limits)
def test_the_largest_saving_is_that_of_the_best_set(given_options, limit):
    best = max(saving(given_options, chosen) for chosen in allowed_sets(given_options, limit))
    assert abs(largest_saving(given_options, limit) - best) < 1e-11


def test_nothing_is_chosen_when_nothing_is_to_be_saved():
    assert cheapest_set([Option(frozenset("a"), 1e-6, 0.0)], 0.0) == []


@reproducibly
@given(options, st.integers(1, 25).map(lambda n: n * 1e-6), limits, st.sampled_from((0.5, 0.8, 1.0, 1.3)))
def test_a_set_is_found_that_saves_enough_as_measured(given_options, wanted_s, limit, kept):
    """Sets save a share of what their options add up to; the cheapest that saves enough is among those measured."""
    sets = list(measured_sets(given_options, wanted_s, limit, lambda chosen: kept * saving(given_options, chosen)))
    assert len({one.chosen for one in sets}) == len(sets) <= MEASURED
    reached = [one.loss for one in sets if one.enough]
    best = cheapest_set(given_options, wanted_s / kept, limit)
    assert bool(reached) == (not isinstance(best, Rejection))
    if reached:
        assert min(reached) == loss(given_options, best)


def test_a_set_just_large_enough_is_found_where_savings_do_not_add_up():
    saved = (0.0, 0.05, 0.09, 0.12, 0.30, 0.50, 0.65, 0.75)
    alike = [Option(frozenset(name), 0.1, 1.0) for name in "abcdefg"]
    sets = list(measured_sets(alike, 0.29, None, lambda chosen: saved[len(chosen)]))
    assert min(len(one.chosen) for one in sets if one.enough) == 4


def test_nothing_more_is_measured_when_all_that_there_is_saves_too_little():
    alike = [Option(frozenset(name), 0.1, 1.0) for name in "abc"]
    sets = list(measured_sets(alike, 0.25, None, lambda chosen: 0.05 * len(chosen)))
    assert [len(one.chosen) for one in sets] == [3]


@pytest.mark.parametrize("time_for", [0, 1])
def test_what_was_measured_counts_when_there_is_no_time_for_more(time_for):
    alike = [Option(frozenset(name), 0.1, 1.0) for name in "abcdefg"]
    left = iter([0.05 * n for n in range(time_for)])
    sets = list(measured_sets(alike, 0.29, None, lambda _: next(left, None)))
    assert [one.saved_s for one in sets] == [0.05 * n for n in range(time_for)]
