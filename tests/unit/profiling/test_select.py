"""Selection (thesis, algorithm 4) on cases worked by hand."""

import math

import pytest

from gos_adapt.profiling.select import Memory, SiteCost, amdahl_bound, select
from gos_adapt.quantities import Conditions, Measurement

CONDITIONS = Conditions("paper", 1, "2026-01-01T00:00:00+00:00", "made up")
FITS = Memory(model_bytes=100, device_bytes=1000)
TOO_SMALL = Memory(model_bytes=1000, device_bytes=100)


def site(name, latency_s, parameters, likeness=None, overlaps=()):
    samples = latency_s if isinstance(latency_s, tuple) else (latency_s,)
    return SiteCost(name, likeness or name, Measurement(samples, CONDITIONS), parameters, frozenset(overlaps))


def test_the_slowest_is_selected_when_the_model_fits():
    selection = select([site("a", 1.0, 10), site("b", 3.0, 1), site("c", 2.0, 99)], FITS, whole_s=6.0)
    assert selection.group == ("b",)
    assert selection.bound == pytest.approx(2.0)


def test_the_largest_is_selected_when_the_model_does_not_fit():
    selection = select([site("a", 1.0, 10), site("b", 3.0, 1), site("c", 2.0, 99)], TOO_SMALL, whole_s=6.0)
    assert selection.group == ("c",)
    assert "1000 bytes exceed the device's 100" in selection.reasons["c"]


def test_an_unmeasured_site_can_be_selected_only_for_its_size():
    broken = SiteCost("broken", "broken", Measurement((), CONDITIONS, "no kernel"), 500)
    assert select([broken, site("a", 1.0, 10)], TOO_SMALL, whole_s=1.0).group == ("broken",)
    selection = select([broken, site("a", 1.0, 10)], FITS, whole_s=1.0)
    assert selection.group == ("a",)
    assert selection.reasons["broken"] == "not selected: its latency is unknown (no kernel)"


@pytest.mark.parametrize(("latency_s", "expected"), [(0.96, "big"), (0.94, "slow")])
def test_within_five_percent_parameters_decide(latency_s, expected):
    sites = [site("slow", 1.0, 1), site("big", latency_s, 2)]
    assert select(sites, FITS, whole_s=2.0).group == (expected,)


def test_latencies_within_the_noise_are_close():
    noisy = (0.6, 0.7, 0.8, 0.9, 1.0)  # median 0.8, quartiles 0.7 and 0.9: noise 0.1
    sites = [site("slow", (0.9, 0.9, 0.9, 0.9, 0.9), 1), site("noisy", noisy, 2)]
    assert select(sites, FITS, whole_s=2.0).group == ("noisy",)


def test_all_alike_among_the_worst_are_selected_together_up_to_the_limit():
    sites = [site("a", 1.0, 1, "conv"), site("b", 2.0, 1, "conv"), site("c", 2.02, 1, "conv"), site("d", 1.5, 1)]
    selection = select(sites, FITS, whole_s=8.04)
    assert set(selection.group) == {"b", "c"}
    assert selection.bound == pytest.approx(2.0)
    assert "not close" in selection.reasons["a"]
    assert "unlike" in selection.reasons["d"]
    limited = select(sites, FITS, whole_s=8.0, limit=1)
    assert len(limited.group) == 1
    assert sum("limited to 1" in reason for reason in limited.reasons.values()) == 1


def test_a_site_is_never_selected_twice():
    sites = [site("a", 1.0, 1), site("b", 2.0, 1)]
    assert select(sites, FITS, whole_s=3.0, selected={"b"}).group == ("a",)
    done = select(sites, FITS, whole_s=3.0, selected={"a", "b"})
    assert (done.group, done.bound) == ((), 1.0)
    assert set(done.reasons.values()) == {"not selected: was selected before"}


def test_layers_have_their_turn_exactly_when_their_branch_was_not_replaced():
    sites = [site("layer", 1.0, 1, overlaps=["branch"]), site("branch", 2.0, 2, overlaps=["layer"])]
    assert select(sites, FITS, whole_s=2.0).group == ("branch",)
    assert select(sites, FITS, whole_s=2.0, selected={"branch"}).group == ("layer",)
    replaced = select(sites, FITS, whole_s=2.0, selected={"branch"}, replaced={"branch"})
    assert replaced.group == ()
    assert replaced.reasons["layer"] == "not selected: shares nodes with branch, which was replaced"


def test_a_group_never_holds_two_sites_that_share_nodes():
    sites = [site("a", 1.0, 1, "x", ["b"]), site("b", 1.0, 1, "x", ["a"]), site("c", 1.0, 1, "x")]
    selection = select(sites, FITS, whole_s=3.0)
    assert selection.group == ("a", "c")
    assert "shares nodes with a" in selection.reasons["b"]


def test_every_site_gets_a_reason():
    sites = [site("a", 1.0, 1), site("b", 2.0, 1), site("c", 3.0, 5)]
    assert set(select(sites, FITS, whole_s=6.0, selected={"a"}).reasons) == {"a", "b", "c"}


def test_amdahl_bound():
    assert amdahl_bound(10.0, 5.0) == 2.0
    assert amdahl_bound(10.0, 0.0) == 1.0
    assert amdahl_bound(10.0, 10.5) == math.inf
