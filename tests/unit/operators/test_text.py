from __future__ import annotations

import pytest

from gos_adapt.errors import Rejection
from gos_adapt.operators.graph import OperatorGraph
from gos_adapt.operators.text import MAX_LENGTH, parse

TEXT = """\
v0 = input 4x6x6
v1 = weight 8x2x3x3
v2 = cross_correlation(v0, v1, channels=8, dilation=1x1, groups=2, kernel=3x3, padding=1x1x1x1, stride=2x2)
v3 = shift(v2, offset=-1x0)
v4 = leaky_relu(v3, slope=0.01)
v5 = reshape(v4, shape=72x)"""


def test_text_says_everything():
    graph = parse(TEXT)
    assert isinstance(graph, OperatorGraph)
    assert graph.text == TEXT
    assert graph.output_shape == (72,)
    assert graph.nodes[3].hyper == (("offset", (-1, 0)),)
    assert graph.nodes[4].hyper == (("slope", 0.01),)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("v0 = input 4x6x6", "v0 = input", "line 1: "),
        ("v3 = shift", "v4 = shift", "line 4: must start with 'v3 = '"),
        ("offset=-1x0", "offset=01x0", "not the text form"),
        ("slope=0.01", "slope=1e-2", "not the text form"),
        ("slope=0.01", "slope=nan", "slope must be a float in [0.0, 1.0], got nan"),
        ("slope=0.01", "slope=Nan", "'slope=Nan' is neither an argument nor a setting"),
        ("shape=72x", "shape=72", "shape must be"),
        ("(v4, ", "(v5, ", "uses a node that is not before it"),
        ("leaky_relu", "__import__", "line 5: "),
        ("groups=2", "groups=3", "3 groups do not divide"),
        ("weight 8x2x3x3", "weight 8x2x3x999999999", "at most 268435456 elements"),
        ("v0 = input 4x6x6\n", "v0 = input 4x6x6\n\n", "line 2: "),
    ],
)
def test_a_text_that_is_not_exact_is_rejected_with_the_reason(old, new, reason):
    parsed = parse(TEXT.replace(old, new))
    assert isinstance(parsed, Rejection)
    assert reason in parsed.reason


def test_length_is_bounded_before_anything_is_read():
    assert parse("x" * (MAX_LENGTH + 1)) == Rejection(f"{MAX_LENGTH + 1} characters, at most {MAX_LENGTH}")
    assert parse("\n" * 20) == Rejection("21 lines, at most 20")
