"""The time budget."""

import math

from gos_adapt.budget import Budget


def test_what_delivery_takes_is_kept_from_searching():
    elapsed_s = 0.0
    budget = Budget(100.0, lambda: elapsed_s)
    budget.reserve(10.0)
    assert (budget.left_s(), budget.search_s()) == (100.0, 90.0)
    elapsed_s = 95.0
    assert (budget.left_s(), budget.search_s()) == (5.0, -5.0)


def test_no_more_than_a_quarter_is_kept():
    budget = Budget(100.0, lambda: 0.0)
    budget.reserve(1000.0)
    assert budget.search_s() == 75.0


def test_without_a_budget_there_is_always_time():
    budget = Budget(None, lambda: 1e9)
    budget.reserve(10.0)
    assert budget.left_s() == budget.search_s() == math.inf
