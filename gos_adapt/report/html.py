"""Put facts and pictures into one self-contained HTML file: no network, no other files.

Names of models and tensors, texts and equations come from files that anyone may have written: jinja2 escapes them,
MathML is rebuilt from allowed elements, and the file's content security policy forbids what is not inside it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from gos_adapt.report import facts, pictures
from gos_adapt.report.found import findings
from gos_adapt.report.operator_svg import operator_svg
from gos_adapt.result import Formula, Latencies, Result
from gos_adapt.run_folder import write_atomic
from gos_adapt.verdict import latency_text, metric_text

if TYPE_CHECKING:
    from pathlib import Path

    import plotly.graph_objects as go

MATHML_NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"
MATHML = frozenset(
    {"math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mstyle", "mtable", "mtr", "mtd", "mfrac", "msqrt", "mroot"}
    | {"msup", "msub", "msubsup", "mover", "munder", "munderover"}
)
"""MathML Core elements that carry no link, script or foreign content."""


def write_report(result: Result, path: Path) -> None:
    """Write the report of `result` to `path`; whatever was there is replaced as a whole.

    Raises:
        RunFolderError: `path` cannot be written.
    """
    # JSON can bring half a surrogate pair, which UTF-8 cannot hold.
    write_atomic(path, render(result).encode(errors="replace"))


def render(result: Result) -> str:
    """Return the report as HTML."""
    environment = Environment(
        loader=PackageLoader("gos_adapt", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "latency": facts.measurement_text,
        "count": facts.count_text,
        "duration": facts.duration_text,
        "seconds": latency_text,
        "math": mathml,
        "metric": metric_text,
        "unbroken": unbroken,
    }
    return environment.get_template("report.html.j2").render(_context(result))


def _context(result: Result) -> dict[str, Any]:
    """Everything the template shows."""
    baselines, sites, paretos = facts.baselines(result), facts.site_rows(result), facts.paretos(result)
    slowest = facts.slowest_sites(sites)
    measured = any(row.measurement.ok for row in baselines)
    return {
        "result": result,
        "headlines": facts.headlines(result),
        "baselines": baselines,
        "baseline_plot": _figure(pictures.baseline_bars(baselines), "baselines") if measured else None,
        "sites": sites,
        "slowest": slowest,
        "site_plot": _figure(pictures.site_bars(slowest), "sites") if slowest else None,
        "searches": [
            (pareto, group, _figure(pictures.pareto_scatter(pareto), f"pareto-{i}") if pareto.points else None)
            for i, (pareto, group) in enumerate(zip(paretos, result.search, strict=True))
        ],
        "noise": facts.noise(result),
        "findings": findings(result),
        "operators": facts.replaced_operators(result),
        "outcomes": facts.outcomes(result),
        "environment": facts.environment(result),
        "limits": facts.limits(result),
        "svg": lambda drawing, caption: Markup(operator_svg(drawing, caption)),
        "plotly_js": Markup(get_plotlyjs()),
        "baseline_names": Latencies.BASELINES,
    }


def _figure(figure: go.Figure, name: str) -> Markup:
    """The figure's place and its data; plotly writes `<`, `>` and `/` in data as unicode escapes."""
    config = {"displayModeBar": False, "responsive": True}
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"plot-{name}", config=config))


def unbroken(sentence: str) -> str:
    """Tie numbers to their units, so that no line ends between them."""
    return re.sub(r"(?<=\d) (?=(?:s|ms|µs|%|points?)\b)", "\u00a0", sentence)


def mathml(formula: Formula) -> Markup:
    """Rebuild a formula's `<math>` from allowed elements and their text; fall back to its plain text."""
    try:
        root = ET.fromstring(formula.mathml)
        _rebuild(root)
        return Markup(ET.tostring(root, encoding="unicode", short_empty_elements=False))
    except (ET.ParseError, ValueError, RecursionError):
        return Markup("<code>{}</code>").format(formula.text)


def _rebuild(root: ET.Element) -> None:
    for element in root.iter():
        element.tag = element.tag.removeprefix(MATHML_NAMESPACE)
        element.attrib.clear()
        if element.tag not in MATHML or (element.tag == "math") != (element is root):
            raise ValueError(f"not a formula: {element.tag}")
    root.set("display", "block")
