"""Counted, predicted and measured cost on cases worked by hand."""

import pytest

from gos_adapt.cost.analytical import Roofline
from gos_adapt.cost.counted import counted_cost
from gos_adapt.cost.measured import change_s, clearly_faster, noise_s, ratio_in_turns
from gos_adapt.operators.graph import OperatorGraph
from gos_adapt.operators.text import parse
from gos_adapt.quantities import Conditions, Measurement


def convolution(channels, kernel=1):
    pad = "x".join([str(kernel // 2)] * 4)
    graph = parse(
        f"v0 = input 4x10x10\nv1 = weight {channels}x4x{kernel}x{kernel}\n"
        f"v2 = cross_correlation(v0, v1, channels={channels}, dilation=1x1, groups=1, "
        f"kernel={kernel}x{kernel}, padding={pad}, stride=1x1)"
    )
    assert isinstance(graph, OperatorGraph)
    return graph


def measured(*samples_s):
    return Measurement(samples_s, Conditions("paper", 1, "2026-01-01T00:00:00+00:00", "made up"))


def test_a_pointwise_convolution_is_counted_by_hand():
    cost = counted_cost(convolution(8))
    assert (cost.macs.value, cost.parameters.value) == (4 * 8 * 100, 32)
    assert cost.traffic.value == 4 * (4 * 100 + 32 + 8 * 100)


def test_a_schedule_hint_costs_nothing():
    plain = convolution(8)
    hinted = parse(plain.text.rstrip() + "\nv3 = tile(v2, columns=4)\nv4 = unroll(v3, steps=2)")
    assert isinstance(hinted, OperatorGraph)
    assert counted_cost(hinted) == counted_cost(plain)


def test_no_better_means_lower_in_no_count():
    small, large = counted_cost(convolution(4)), counted_cost(convolution(8))
    assert large.no_better_than(small)
    assert small.no_better_than(small)
    assert not small.no_better_than(large)


def test_roofline_by_hand():
    compute_bound = Roofline(macs_per_s=1e3, bytes_per_s=1e12, kernel_overhead_s=1.0)
    assert compute_bound.predict(convolution(8)).latency_s == pytest.approx(1.0 + 3.2)
    memory_bound = Roofline(macs_per_s=1e12, bytes_per_s=1e3, kernel_overhead_s=0.0)
    assert memory_bound.predict(convolution(8)).latency_s == pytest.approx(4.928)


def test_a_calibrated_roofline_gives_the_measurement_back():
    roofline = Roofline().calibrated(convolution(8), 0.25)
    assert roofline.predict(convolution(8)).latency_s == pytest.approx(0.25)
    assert roofline.predict(convolution(8, kernel=3)).latency_s > 0.25


def test_an_operator_without_kernels_still_costs_a_call():
    identity = parse("v0 = input 4x10x10\nv1 = identity(v0)")
    assert isinstance(identity, OperatorGraph)
    assert Roofline(kernel_overhead_s=2.0).predict(identity).latency_s >= 2.0


def test_noise_and_change_are_of_all_samples():
    original, noisy = measured(1.0, 1.0, 1.0), measured(0.5, 0.7, 0.9, 1.1, 1.3)
    assert noise_s(noisy) == pytest.approx(0.2)
    assert noise_s(measured(1.0)) == 0.0
    assert change_s(noisy, original) == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("samples", "faster"),
    [
        ((0.9,), True),
        ((1.0,), False),
        ((0.9, 0.9, 0.9, 1.1), True),
        ((0.5, 0.5, 1.1, 1.1), False),
        ((0.5, 0.7, 0.9, 1.1, 1.3), False),
    ],
)
def test_clearly_faster_is_in_three_quarters_of_the_pairs(samples, faster):
    assert clearly_faster(measured(*samples), measured(*[1.0] * len(samples))) is faster


def test_a_load_that_slows_both_hides_no_difference():
    loads = [1.0, 1.1, 3.0, 2.9, 1.0, 5.0, 1.2, 2.0]
    original, adapted = measured(*loads), measured(*(0.9 * load for load in loads))
    assert change_s(adapted, original) > -noise_s(original)
    assert clearly_faster(adapted, original)
    assert not clearly_faster(original, adapted)


def test_a_slow_moment_longer_than_a_turn_cancels():
    loads = (1, 1, 3, 3, 3)
    original = measured(*(2.0 * load for load in loads for _ in range(4)))
    adapted = measured(*(1.0 * load for load in loads for _ in range(4)))
    assert ratio_in_turns(adapted, original, 4) == 0.5
    late = measured(*(1.0 * load for load in (1, 1, 1, 3, 3) for _ in range(4)))  # the load came after its turn
    assert late.median_s / original.median_s == pytest.approx(1 / 6)
    assert ratio_in_turns(late, original, 4) == 0.5
