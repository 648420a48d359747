from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from example_result import ALL, SEPARABLE, TEXTS, example_result, hostile, without_replacements

from gos_adapt.errors import RunFolderError
from gos_adapt.report import facts
from gos_adapt.report.found import findings
from gos_adapt.report.html import mathml, render, unbroken, write_report
from gos_adapt.report.operator_svg import operator_svg
from gos_adapt.result import Formula

if TYPE_CHECKING:
    from pathlib import Path


class Elements(HTMLParser):
    """Every element of a page, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] not in (["script"], ["style"]):
            self.text += data


@pytest.mark.parametrize("name", ALL)
def test_every_kind_of_result_renders_with_its_verdict_first(name: str) -> None:
    result = ALL[name]()
    text = Elements(render(result)).text
    heading = text.index(unbroken(result.verdict))
    assert heading < text.index("Against the baselines") < text.index("Replaced operators") < text.index("Limits")


def test_the_report_asks_for_nothing_outside_itself() -> None:
    page = Elements(render(example_result()))
    assert page.tags.count("link") == 1
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert sources == ["data:,"]


def test_plotly_is_embedded_once() -> None:
    assert len(re.findall(r"plotly\.js v\d", render(example_result()))) == 1


def test_hostile_names_bring_no_element_and_no_handler() -> None:
    innocent, page = Elements(render(example_result())), Elements(render(hostile()))
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    # One search has fewer candidates and one operator cannot be drawn, so fewer elements, never more scripts.
    assert page.tags.count("script") == innocent.tags.count("script")
    assert "document.title='owned'" in page.text


DEEP = f"<math>{'<mn>' * 5000}{'</mn>' * 5000}</math>"


def test_hostile_mathml_falls_back_to_escaped_text() -> None:
    inside = ("<script>1</script>", "<mi>x", "<mtext><img src='x'/></mtext>", "&xxe;", '<a href="javascript:1"/>')
    for evil in (*(f"<math>{content}</math>" for content in inside), "", "<mi>x</mi>", "<math><math/></math>", DEEP):
        assert mathml(Formula("a < b", "", evil)) == "<code>a &lt; b</code>"


def test_mathml_keeps_its_elements_and_loses_its_attributes() -> None:
    assert (
        mathml(Formula("", "", '<math><mi onclick="alert(1)">x</mi></math>'))
        == '<math display="block"><mi>x</mi></math>'
    )
    replacement = example_result().sites[0].replacement
    assert replacement
    assert "<msub><mo>⋆</mo><mtext>3×3, g32</mtext></msub>" in mathml(replacement.formula)


def test_an_operator_picture_has_a_box_for_each_node_and_an_arrow_for_each_edge() -> None:
    drawing = facts.drawing(SEPARABLE)
    assert drawing
    svg = operator_svg(drawing, 'graph of "x"')
    assert svg.count('class="node') == 8
    assert svg.count('class="edge"') == 7
    assert 'aria-label="graph of &quot;x&quot;"' in svg


def test_boxes_of_an_operator_picture_do_not_overlap() -> None:
    for text in TEXTS:
        drawing = facts.drawing(text)
        assert drawing
        numbers = re.findall(
            r'<rect x="([-\d.]+)" y="([-\d.]+)" width="([-\d.]+)" height="([-\d.]+)"', operator_svg(drawing, "")
        )
        boxes = [tuple(map(float, box)) for box in numbers]
        assert len(boxes) == len(drawing.boxes)
        for i, (x, y, width, height) in enumerate(boxes):
            for other_x, other_y, other_width, other_height in boxes[:i]:
                beside = x + width <= other_x or other_x + other_width <= x
                above = y + height <= other_y or other_y + other_height <= y
                assert beside or above


def test_the_report_says_what_was_found_and_why() -> None:
    text = Elements(render(example_result())).text
    assert "What was found" in text
    assert all(finding.why in text.replace("\u00a0", " ") for finding in findings(example_result()))
    assert "What was found" not in Elements(render(without_replacements())).text


def test_the_report_says_how_much_no_replacement_can_take_away() -> None:
    assert (
        "The searched sites take 41.8 % of that; whatever replaces them, the other 58.2 % stay."
        in Elements(render(example_result())).text
    )


def test_without_all_kernels_the_report_gives_no_sum_of_them() -> None:
    result = example_result()
    text = Elements(render(replace(result, profile=replace(result.profile, kernels=None)))).text
    assert "Not all of the 31 kernels of the compiled original were measured, so there is no sum of them." in text
    assert "The searched sites take" not in text


def test_nothing_to_gain_still_reads_well() -> None:
    text = Elements(render(without_replacements())).text
    assert "No operator was replaced: the delivered model is the original, compiled." in text
    assert "No site was worth searching." in text
    assert "unchanged" in text


def test_the_report_is_written_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(example_result(), path)
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(RunFolderError, match="make sure that files can be written in") as raised:
        write_report(example_result(), tmp_path / "absent" / "report.html")
    assert "--out" not in str(raised.value)  # which `adapt report` does not have
