"""Objectives that are counted, or predicted from counts."""

import pytest

from gos_adapt.operators.graph import OperatorGraph
from gos_adapt.operators.text import parse
from gos_adapt.search.candidate import Candidate, Outcome
from gos_adapt.search.objectives import OBJECTIVES
from gos_adapt.search.objectives.memory import peak_bytes

RESIDUAL = """
v0 = input 2x4x4
v1 = weight 2x2x1x1
v2 = cross_correlation(v0, v1, channels=2, dilation=1x1, groups=1, kernel=1x1, padding=0x0x0x0, stride=1x1)
v3 = relu(v2)
v4 = add(v0, v3)
"""
MAP = 2 * 4 * 4 * 4
"""Bytes of one feature map."""


def operator(text):
    graph = parse(text.strip())
    assert isinstance(graph, OperatorGraph), graph
    return graph


def test_a_shortcut_keeps_its_input_alive():
    assert peak_bytes(operator(RESIDUAL)) == 3 * MAP
    chain = RESIDUAL.replace("v4 = add(v0, v3)", "v4 = relu(v3)")
    assert peak_bytes(operator(chain)) == 2 * MAP


def test_a_schedule_hint_needs_no_memory():
    hinted = RESIDUAL.replace(
        "v3 = relu(v2)\nv4 = add(v0, v3)", "v3 = tile(v2, columns=4)\nv4 = relu(v3)\nv5 = add(v0, v4)"
    )
    assert peak_bytes(operator(hinted)) == peak_bytes(operator(RESIDUAL))


def test_memory_counts_the_weights_of_all_sites_and_the_maps_of_one():
    outcome = Outcome(Candidate(operator(RESIDUAL), (), ()), sites=3)
    assert OBJECTIVES["memory (bytes)"](outcome) == 3 * 4 * 4 + 3 * MAP


def test_energy_is_macs_and_bytes_at_their_price():
    outcome = Outcome(Candidate(operator(RESIDUAL), (), ()), sites=2)
    macs = 16 * 4 + 32 / 2 + 32 / 2  # convolution, relu, addition: half a multiply-accumulate an element
    traffic = 2 * MAP + 4 * 4 + 2 * MAP + 3 * MAP
    assert OBJECTIVES["energy (J)"](outcome) == pytest.approx(2 * (4.6e-12 * macs + 12.5e-12 * traffic))
