"""Draw the facts: plotly figures. Colours are of the Okabe-Ito palette, and shapes repeat what colours say."""

from __future__ import annotations

from html import escape
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from gos_adapt.report.facts import BaselineRow, Pareto, ParetoPoint, Price, SiteRow, Status, count_text
from gos_adapt.verdict import latency_text

if TYPE_CHECKING:
    from gos_adapt.quantities import Measurement

INK, FAINT, BEFORE, AFTER, CHOSEN = "#1f2328", "#d8dee4", "#9aa4af", "#0072b2", "#d55e00"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"

LOSS_MARGIN = 1.5

STATUS: dict[Status, tuple[str, dict[str, Any]]] = {
    "infeasible": ("infeasible", {"symbol": "x-thin", "size": 8, "line": {"width": 1.5, "color": BEFORE}}),
    "dominated": ("feasible", {"symbol": "circle-open", "size": 8, "color": AFTER}),
    "front": ("on the front", {"symbol": "circle", "size": 9, "color": AFTER}),
    "chosen": ("chosen", {"symbol": "star", "size": 15, "color": CHOSEN}),
}
"""Legend word and marker of each kind of candidate, drawn in this order."""


def baseline_bars(rows: tuple[BaselineRow, ...]) -> go.Figure:
    """Draw whole-model latencies: bars are medians, the line on each reaches down to the best sample."""
    shown = [row for row in rows if row.measurement.ok]
    scale, unit = _unit([row.measurement.median_s for row in shown])
    figure = go.Figure(
        go.Bar(
            x=[row.measurement.median_s * scale for row in shown],
            y=[escape(row.name) for row in shown],
            orientation="h",
            marker={"color": [AFTER if row.role == "adapted" else BEFORE for row in shown]},
            text=[latency_text(row.measurement.median_s) for row in shown],
            textposition="auto",
            insidetextanchor="start",
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [0] * len(shown),
                "arrayminus": [(row.measurement.median_s - row.measurement.best_s) * scale for row in shown],
                "color": INK,
                "thickness": 1.2,
                "width": 4,
            },
            hovertext=[
                f"median {latency_text(row.measurement.median_s)}, best {latency_text(row.measurement.best_s)}"
                for row in shown
            ],
            hoverinfo="text",
        )
    )
    return _styled(figure, height=60 + 44 * len(shown), x_title=f"latency, {unit} (measured)", reverse=True)


def site_bars(rows: tuple[SiteRow, ...]) -> go.Figure:
    """Draw the latency of each site before and, where it was replaced, after; words where that has no latency."""
    scale, unit = _unit([row.before.median_s for row in rows])
    replaced = [(row, row.after) for row in rows if row.after is not None]
    figure = go.Figure(
        [
            go.Bar(
                name="original (measured)",
                x=[row.before.median_s * scale for row in rows],
                y=[escape(row.label) for row in rows],
                hovertext=[_site_text(row) for row in rows],
                hoverinfo="text",
                orientation="h",
                marker={"color": BEFORE},
            ),
            go.Bar(
                name="replacement (measured)",
                x=[after.median_s * scale if after.ok else 0.0 for _, after in replaced],
                y=[escape(row.label) for row, _ in replaced],
                text=["" if after.ok else escape(_words(after)) for _, after in replaced],
                textposition="outside",
                hovertext=[_site_text(row) for row, _ in replaced],
                hoverinfo="text",
                orientation="h",
                marker={"color": AFTER},
            ),
        ]
    )
    figure.update_layout(showlegend=True)
    return _styled(figure, height=120 + 30 * len(rows), x_title=f"latency, {unit}", reverse=True)


def pareto_scatter(pareto: Pareto) -> go.Figure:
    """Draw every candidate by latency change and price, the front joined, the original at no change.

    Losses have no bound, so that axis ends soon above the front and what was chosen; what lies beyond is left out.
    """
    scale, unit = _unit([abs(point.latency_change_s) for point in pareto.points])
    figure = go.Figure()
    front = sorted((p for p in pareto.points if p.on_front), key=lambda p: p.latency_change_s)
    if len(front) > 1:
        line = {"color": AFTER, "width": 1, "shape": "hv"}
        xs, ys = [p.latency_change_s * scale for p in front], [p.price for p in front]
        figure.add_scatter(x=xs, y=ys, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    for status, (name, marker) in STATUS.items():
        points = [point for point in pareto.points if point.status == status]
        if points:
            figure.add_scatter(
                name=name,
                x=[point.latency_change_s * scale for point in points],
                y=[point.price for point in points],
                mode="markers",
                cliponaxis=pareto.price == "loss",
                marker=marker,
                hovertext=[_point_text(point, pareto.price) for point in points],
                hoverinfo="text",
            )
    original = {"symbol": "diamond", "size": 10, "color": INK}
    figure.add_scatter(
        name="original",
        x=[0],
        y=[pareto.original_price],
        mode="markers",
        marker=original,
        hovertext=["original operator"],
        hoverinfo="text",
    )
    title = "parameters (counted)" if pareto.price == "parameters" else "loss after fitting (measured)"
    figure.update_yaxes(title={"text": title, "font": {"size": 13}}, rangemode="tozero")
    shown = [point.price for point in pareto.points if point.on_front or point.status == "chosen"]
    if pareto.price == "loss" and shown:
        top = LOSS_MARGIN * max(shown)
        figure.update_yaxes(range=[-0.05 * top, top] if top > 0 else None)
    figure.update_xaxes(zeroline=True, zerolinecolor=BEFORE)
    return _styled(figure, height=380, x_title=f"latency change at one site, {unit} (measured)")


def _styled(figure: go.Figure, height: int, x_title: str, *, reverse: bool = False) -> go.Figure:
    axis = {"gridcolor": FAINT, "linecolor": FAINT, "automargin": True, "fixedrange": True}
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 10, "r": 16, "t": 36 if len(figure.data) > 1 else 8, "b": 10},
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        bargap=0.3,
        hoverlabel={"bgcolor": "white", "align": "left", "font": {"size": 12}},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left"},
    )
    figure.update_xaxes(axis | {"title": {"text": x_title, "standoff": 10, "font": {"size": 13}}})
    figure.update_yaxes(axis | ({"autorange": "reversed", "showgrid": False} if reverse else {}))
    return figure


def _unit(latencies_s: list[float]) -> tuple[float, str]:
    """One unit for one axis: the factor from seconds, and its name."""
    largest = max(latencies_s, default=0.0)
    return next(((scale, unit) for scale, unit in ((1.0, "s"), (1e3, "ms")) if largest * scale >= 0.1), (1e6, "µs"))


def _site_text(row: SiteRow) -> str:
    lines = [
        f"<b>{row.number} · {escape(row.kind)}</b>",
        escape(row.name),
        f"original {latency_text(row.before.median_s)}",
    ]
    if row.after is not None:
        lines.append(f"replacement {escape(_words(row.after))}")
    return "<br>".join(lines)


def _words(latency: Measurement) -> str:
    """The median, or in a few words why there is none."""
    if latency.error is None:
        return latency_text(latency.median_s)
    return shorten(latency.error.partition(":")[0], 40, placeholder=" …")


def _point_text(point: ParetoPoint, price: Price) -> str:
    """What a candidate is: its instructions (leaves are left out) and its numbers."""
    lines = [line for line in point.text.splitlines() if "(" in line]
    numbers = f"{latency_text(point.latency_change_s)} (measured), {count_text(point.parameters)} parameters (counted)"
    accuracy = [f"accuracy {escape(point.accuracy)}"] if point.accuracy else []
    accuracy += [f"loss {point.price:.3g}"] if price == "loss" else []
    return "<br>".join(
        [f"<b>{escape(point.outcome)}</b>", numbers, *accuracy, *(escape(line[:90]) for line in lines[:20])]
    )
