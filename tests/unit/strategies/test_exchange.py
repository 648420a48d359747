"""Exchanging replacements: better by the joint loss, within the latency, and for as long as there is time."""

from dataclasses import dataclass, field

import pytest

from gos_adapt.strategies.exchange import exchanged
from gos_adapt.strategies.programme import Option


@dataclass(frozen=True)
class Place:
    name: str


@dataclass(frozen=True, eq=False)
class Choice:
    """What exchanging reads of a row."""

    site: Place
    option: Option = field(repr=False)
    family: str = "shortcut"


def rows(*losses, saves_s=1.0):
    """A row for each node, with these losses alone."""
    return [Choice(Place(f"s{i}"), Option(frozenset({f"n{i}"}), saves_s, float(loss))) for i, loss in enumerate(losses)]


def names(chosen):
    return {row.site.name for row in chosen}


def test_the_best_set_is_found_though_the_losses_alone_say_otherwise():
    given = rows(1, 2, 3, 4, 5)
    joint = {"s0": 9, "s1": 7, "s2": 5, "s3": 3, "s4": 1}
    best = exchanged(
        (given[0], given[1]), given, lambda chosen: sum(joint[n] for n in names(chosen)), lambda _: True, lambda _: True
    )
    assert names(best) == {"s3", "s4"}


def test_no_loss_is_asked_for_twice():
    given, asked = rows(1, 2, 3, 4), []

    def loss(chosen):
        asked.append(frozenset(names(chosen)))
        return -sum(row.option.loss for row in chosen)

    exchanged((given[0], given[1]), given, loss, lambda _: True, lambda _: True)
    assert len(asked) == len(set(asked))


def test_a_set_that_misses_the_latency_is_not_taken():
    given = rows(1, 2, 3)
    best = exchanged(
        (given[0],),
        given,
        lambda chosen: -chosen[0].option.loss,
        lambda chosen: names(chosen) != {"s2"},
        lambda _: True,
    )
    assert names(best) == {"s1"}


@pytest.mark.parametrize(("behind", "loss"), [({"s2", "s3"}, 1), ({"s1", "s3"}, 4)], ids=["leads on", "leads nowhere"])
def test_a_set_that_misses_the_latency_is_passed_on_the_way(behind, loss):
    """What is better lies behind it, or, where it leads nowhere, beside the best that reaches it."""
    given = rows(1, 2, 3, 4)
    joint = {frozenset({"s0", "s1"}): 5, frozenset({"s0", "s2"}): 3, frozenset(behind): loss}
    best = exchanged(
        (given[0], given[1]),
        given,
        lambda chosen: joint.get(frozenset(names(chosen)), 9),
        lambda chosen: names(chosen) != {"s0", "s2"},
        lambda _: True,
    )
    assert names(best) == behind


def test_what_saves_less_or_covers_the_same_or_is_of_another_family_is_not_tried():
    given = [*rows(1, 2), *rows(0, 0, 0, saves_s=0.5)[2:]]
    inside = Choice(Place("inside"), Option(frozenset({"n1"}), 1.0, 0.0))
    other = Choice(Place("other"), Option(frozenset({"n9"}), 9.0, 0.0), "narrowed")
    asked = []

    def loss(chosen):
        asked.append(names(chosen))
        return 0.0

    start = (given[0], given[1])
    assert exchanged(start, [*given, inside, other], loss, lambda _: True, lambda _: True) == start
    assert asked == [{"s0", "s1"}, {"s0", "inside"}]


@pytest.mark.parametrize("moments", [0, 1, 2])
def test_it_ends_when_the_time_is_over(moments):
    given, left, asked = rows(1, 2, 3, 4), iter([True] * moments), []

    def loss(chosen):
        asked.append(chosen)
        return -len(asked)

    exchanged((given[0], given[1]), given, loss, lambda _: True, lambda _: next(left, False))
    assert len(asked) == 1 + moments
