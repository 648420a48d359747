"""The integer program against trying every set."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from gos_adapt.errors import Rejection
from gos_adapt.strategies.programme import Option, cheapest_set, largest_saving

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


@given(options, limits)
def test_the_largest_saving_is_that_of_the_best_set(given_options, limit):
    best = max(saving(given_options, chosen) for chosen in allowed_sets(given_options, limit))
    assert abs(largest_saving(given_options, limit) - best) < 1e-11


def test_nothing_is_chosen_when_nothing_is_to_be_saved():
    assert cheapest_set([Option(frozenset("a"), 1e-6, 0.0)], 0.0) == []
