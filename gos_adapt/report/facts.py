"""Plain data behind every picture and table of the report. Nothing here draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from gos_adapt.cost.measured import noise_s
from gos_adapt.errors import Rejection
from gos_adapt.operators.graph import LEAVES, Node, OperatorGraph
from gos_adapt.operators.text import parse
from gos_adapt.verdict import comparison_text, latency_text, metric_text, points_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gos_adapt.quantities import Count, Measurement
    from gos_adapt.result import (
        Accuracy,
        CandidateResult,
        Formula,
        GroupSearch,
        OperatorSummary,
        Options,
        Result,
        SiteResult,
    )

BARS = 24
"""Sites in the per-site picture: more are unreadable, and the rest costs next to nothing."""


class Headline(NamedTuple):
    """One quantity, before and after, as text."""

    name: str
    before: str
    after: str
    kind: str


class BaselineRow(NamedTuple):
    """One line of the baselines table: a latency, and the adapted model against it."""

    name: str
    role: Literal["adapted", "baseline"]
    measurement: Measurement
    speed_up_best: float | None
    speed_up_median: float | None
    comparison: str
    accuracy: str


class SiteRow(NamedTuple):
    """One site; `number` is how pictures call it."""

    number: int
    name: str
    kind: str
    state: Literal["replaced", "retrained", "searched", "left alone"]
    reason: str
    before: Measurement
    after: Measurement | None
    macs: tuple[Count, Count]
    parameters: tuple[Count, Count]

    @property
    def label(self) -> str:
        """Short name: tensor names are too long for an axis."""
        return f"{self.number}\u00a0·\u00a0{self.kind}"


Status = Literal["chosen", "front", "dominated", "infeasible"]


Price = Literal["parameters", "loss"]
"""What a search weighed against latency."""


class ParetoPoint(NamedTuple):
    """One candidate that was timed, and has the price; one that was chosen may be on the front or not."""

    latency_change_s: float
    price: float
    parameters: int
    status: Status
    on_front: bool
    outcome: str
    text: str
    accuracy: str


class Pareto(NamedTuple):
    """One search: every candidate with a latency and a price, and how many candidates have none."""

    group: str
    sites: tuple[str, ...]
    price: Price
    original_price: float
    points: tuple[ParetoPoint, ...]
    unpriced: int


class OutcomeRow(NamedTuple):
    """Where candidates ended: how many in each search, their share of all, and the seconds that the level took."""

    name: str
    counts: tuple[int, ...]
    share: float
    seconds: float | None


class OutcomeTable(NamedTuple):
    """Candidates by where they ended (rows) and search (columns)."""

    groups: tuple[str, ...]
    rows: tuple[OutcomeRow, ...]
    totals: tuple[int, ...]
    seconds: float


class Box(NamedTuple):
    """One node of an operator: what it is called, its settings, the shape it makes."""

    name: str
    settings: tuple[str, ...]
    shape: str
    role: Literal["input", "weight", "instruction", "result"]


class Drawing(NamedTuple):
    """An operator as boxes and arrows (indices of boxes)."""

    boxes: tuple[Box, ...]
    arrows: tuple[tuple[int, int], ...]


class OperatorView(NamedTuple):
    """An operator in every form the report shows; no drawing when its text cannot be read."""

    text: str
    formula: Formula
    drawing: Drawing | None
    macs: Count
    parameters: Count
    latency: Measurement


class ReplacedOperator(NamedTuple):
    """One operator that took another's place, and where."""

    sites: tuple[str, ...]
    numbers: tuple[int, ...]
    before: OperatorView
    after: OperatorView
    lineage: tuple[str, ...]
    comparison: str


def headlines(result: Result) -> tuple[Headline, ...]:
    """Latency, accuracy and parameters of the whole model, multiply-accumulates of its sites."""
    latency, accuracy = result.latency, result.accuracy
    rows = [Headline("Latency", measurement_text(latency.original), measurement_text(latency.adapted), "measured")]
    if accuracy:
        name = f"{accuracy.metric[0].upper()}{accuracy.metric[1:]}"
        rows.append(Headline(name, metric_text(accuracy.original), metric_text(accuracy.adapted), "measured"))
    counts = (("Parameters", result.parameters), ("Multiply-accumulates of the sites", result.macs))
    for name, change in counts:
        rows.append(Headline(name, count_text(change.before.value), count_text(change.after.value), change.before.kind))
    return tuple(rows)


def baselines(result: Result) -> tuple[BaselineRow, ...]:
    """Return the adapted model, then every baseline, measured or not."""
    latency, accuracy = result.latency, result.accuracy
    scores = {"original": accuracy.original, "onnxruntime_fp32": accuracy.original} if accuracy else {}
    if accuracy and accuracy.onnxruntime_int8:
        scores["onnxruntime_int8"] = accuracy.onnxruntime_int8
    adapted = metric_text(accuracy.adapted) if accuracy else ""
    rows = [BaselineRow("Adapted model", "adapted", latency.adapted, None, None, "", adapted)]
    for key, name in latency.BASELINES.items():
        ratio = latency.speed_up(key)
        rows.append(
            BaselineRow(
                name=f"{name[0].upper()}{name[1:]}",
                role="baseline",
                measurement=latency.baselines[key],
                speed_up_best=ratio and ratio.best,
                speed_up_median=ratio and ratio.median,
                comparison=comparison_text(ratio.median) if ratio else "",
                accuracy=metric_text(scores[key]) if key in scores else "",
            )
        )
    return tuple(rows)


def site_rows(result: Result) -> tuple[SiteRow, ...]:
    """Every site in the model's order."""
    return tuple(_site_row(number, site) for number, site in enumerate(result.sites, start=1))


def slowest_sites(rows: Iterable[SiteRow]) -> tuple[SiteRow, ...]:
    """Return the sites that the per-site picture shows: measured, slowest first, at most `BARS`."""
    measured = (row for row in rows if row.before.ok)
    return tuple(sorted(measured, key=lambda row: -row.before.median_s)[:BARS])


def paretos(result: Result) -> tuple[Pareto, ...]:
    """One picture for each search."""
    parameters = {site.name: site.original.parameters.value for site in result.sites}
    price: Price = "loss" if result.options.strategy == "global" else "parameters"
    return tuple(_pareto(group, parameters, price) for group in result.search)


def outcomes(result: Result) -> OutcomeTable:
    """Candidates of all searches by where they ended, in the order of the cascade."""
    names = dict.fromkeys(name for group in result.search for name in group.outcomes)
    totals = tuple(sum(group.outcomes.values()) for group in result.search)
    return OutcomeTable(
        groups=tuple(group.name for group in result.search),
        rows=tuple(_outcome_row(name, result.search, sum(totals)) for name in names),
        totals=totals,
        seconds=sum(seconds for group in result.search for seconds in group.levels_s.values()),
    )


def noise(result: Result) -> str:
    """How much the samples of the profiled whole differ; empty when there are none."""
    whole = result.profile.whole
    if not whole.ok or len(whole.samples_s) < 2:
        return ""
    spread_s = 2 * noise_s(whole)
    return (
        f"Of {count_text(len(whole.samples_s))} samples of the whole, the median lies"
        f" {100 * (whole.median_s / whole.best_s - 1):.1f} % above the best, and the middle half within"
        f" {latency_text(spread_s)}, {100 * spread_s / whole.median_s:.1f} % of the median (measured):"
        " a smaller difference may be chance."
    )


def replaced_operators(result: Result) -> tuple[ReplacedOperator, ...]:
    """Return the replacements, sites that received the same operator together."""
    together: dict[tuple[str, str], list[tuple[int, SiteResult]]] = {}
    for number, site in enumerate(result.sites, start=1):
        if site.replacement is not None:
            together.setdefault((site.original.key, site.replacement.key), []).append((number, site))
    return tuple(_replaced_operator(sites) for sites in together.values())


def drawing(text: str) -> Drawing | None:
    """Boxes and arrows of an operator's text form; None when it cannot be read."""
    graph = parse(text)
    return None if isinstance(graph, Rejection) else _drawing(graph)


def environment(result: Result) -> tuple[tuple[str, str], ...]:
    """Machine, versions and settings as name and value."""
    machine, device, options = result.environment, result.device, result.options
    budget = "none" if options.budget_s is None else duration_text(options.budget_s)
    rows = (
        ("Device", f"{device.name} ({device.kind}), {count_text(device.memory_bytes // 2**20)} MiB"),
        ("Threads", str(device.threads)),
        ("Compiled for", device.target),
        ("Searched on", f"{machine.cpu}, {machine.cores} cores, {machine.system}, {machine.architecture}"),
        ("Frequency governor", machine.governor or "not readable"),
        ("Load at the start", "not readable" if machine.load is None else f"{machine.load:.2f}"),
        ("Date", machine.date),
        ("Accuracy that may be lost", _tolerance(options, result.accuracy)),
        ("Strategy", options.strategy),
        ("Asked for", _asked_for(options)),
        ("Also minimised", ", ".join(options.also_minimise) or "nothing"),
        ("Layers that kept their operator", "trained too" if options.train_all else "left as they were"),
        ("Most sites to replace", "any number" if options.max_sites is None else str(options.max_sites)),
        ("Time budget", budget),
        ("Seed", str(options.seed)),
        ("Python", machine.python),
    )
    return rows + tuple(machine.packages.items())


def _tolerance(options: Options, accuracy: Accuracy | None) -> str:
    """Epsilon in words: what it is compared with is relative where the metric is an error."""
    if accuracy is None:
        return "not used, because no task was given"
    epsilon = options.epsilon
    words = points_text(epsilon) if accuracy.higher_is_better else f"{100 * epsilon:g} % of the error"
    if options.strategy == "global" and (options.speed_up or options.target_latency_s):
        return f"as much as the latency asked for costs; more than {words} is noted"
    return words


def _asked_for(options: Options) -> str:
    if options.speed_up is not None:
        return f"{options.speed_up:g} times the compiled original's speed"
    if options.target_latency_s is not None:
        return f"{latency_text(options.target_latency_s)} for the whole model"
    return "as fast as the accuracy allows"


def limits(result: Result) -> tuple[str, ...]:
    """What the numbers do not say, for this result."""
    batch, threads = result.latency.batch, result.device.threads
    said = [
        f"Latencies hold for batch {batch} on {threads} thread{'s' * (threads != 1)} of {result.device.name};"
        " another device, batch or thread count ranks operators differently.",
        "Sites may overlap (a residual branch holds its layers), so their latencies do not add up to the model's.",
    ]
    if result.accuracy is None:
        said.append(
            "No task was given: accuracy was not measured, and only rewrites that keep the function were tried."
        )
    else:
        said.append(
            f"The accuracy is that of {count_text(result.accuracy.n)} samples of the split “{result.accuracy.split}”,"
            " which no decision used."
        )
    for name, measurement in result.latency.baselines.items():
        if not measurement.ok:
            said.append(f"Nothing is said against {result.latency.BASELINES[name]}: {measurement.error}.")
    return (*said, *result.notes)


def measurement_text(measurement: Measurement | None) -> str:
    """Median latency, or a dash."""
    return latency_text(measurement.median_s) if measurement and measurement.ok else "–"


def count_text(value: int) -> str:
    """Digits in groups of three, by thin spaces that do not break."""
    return f"{value:,}".replace(",", "\u202f")


def duration_text(seconds: float) -> str:
    """A stage's duration: ``"3.2 s"``, ``"12 min 5 s"``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def _outcome_row(name: str, search: tuple[GroupSearch, ...], proposed: int) -> OutcomeRow:
    counts = tuple(group.outcomes.get(name, 0) for group in search)
    seconds = [group.levels_s[name] for group in search if name in group.levels_s]
    return OutcomeRow(name, counts, sum(counts) / max(1, proposed), sum(seconds) if seconds else None)


def _site_row(number: int, site: SiteResult) -> SiteRow:
    after = site.replacement or site.original
    return SiteRow(
        number=number,
        name=site.name,
        kind=site.kind,
        state=_state(site),
        reason=site.reason,
        before=site.original.latency,
        after=site.replacement.latency if site.replacement else None,
        macs=(site.original.macs, after.macs),
        parameters=(site.original.parameters, after.parameters),
    )


def _state(site: SiteResult) -> Literal["replaced", "retrained", "searched", "left alone"]:
    if site.replacement is not None:
        return "replaced"
    if site.retrained:
        return "retrained"
    return "searched" if site.searched else "left alone"


def _pareto(group: GroupSearch, parameters: dict[str, int], price: Price) -> Pareto:
    points = tuple(
        ParetoPoint(
            latency_change_s=candidate.latency_change.value,
            price=paid,
            parameters=candidate.parameters.value,
            status=_status(candidate),
            on_front=candidate.on_front,
            outcome=candidate.outcome,
            text=candidate.text,
            accuracy=metric_text(candidate.accuracy) if candidate.accuracy else "",
        )
        for candidate in group.candidates
        if candidate.latency_change is not None and (paid := _paid(candidate, price)) is not None
    )
    original = next((parameters[site] for site in group.sites if site in parameters), 0)
    return Pareto(
        group=group.name,
        sites=group.sites,
        price=price,
        original_price=original if price == "parameters" else 0,
        points=points,
        unpriced=sum(group.outcomes.values()) - len(points),
    )


def _paid(candidate: CandidateResult, price: Price) -> float | None:
    if price == "parameters":
        return candidate.parameters.value
    return None if candidate.loss is None else candidate.loss.value


def _status(candidate: CandidateResult) -> Status:
    if candidate.chosen:
        return "chosen"
    if not candidate.feasible:
        return "infeasible"
    return "front" if candidate.on_front else "dominated"


def _replaced_operator(sites: list[tuple[int, SiteResult]]) -> ReplacedOperator:
    _, first = sites[0]
    assert first.replacement is not None
    before, after = first.original.latency, first.replacement.latency
    comparison = comparison_text(before.median_s / after.median_s) if before.ok and after.ok else ""
    return ReplacedOperator(
        sites=tuple(site.name for _, site in sites),
        numbers=tuple(number for number, _ in sites),
        before=_view(first.original),
        after=_view(first.replacement),
        lineage=first.lineage,
        comparison=comparison and f"{comparison} the original here",
    )


def _view(operator: OperatorSummary) -> OperatorView:
    return OperatorView(
        operator.text, operator.formula, drawing(operator.text), operator.macs, operator.parameters, operator.latency
    )


PLAIN_SETTINGS = {
    "stride": (1, 1),
    "dilation": (1, 1),
    "groups": 1,
    "padding": (0, 0, 0, 0),
}
"""Settings that change nothing and would only fill the picture; the text form has them all."""


def _drawing(graph: OperatorGraph) -> Drawing:
    boxes = tuple(_box(graph, i, node) for i, node in enumerate(graph.nodes))
    return Drawing(boxes, tuple((argument, i) for i, node in enumerate(graph.nodes) for argument in node.args))


def _box(graph: OperatorGraph, index: int, node: Node) -> Box:
    settings = tuple(
        f"{name} {'×'.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in node.hyper
        if PLAIN_SETTINGS.get(name) != value
    )
    shape = "×".join(map(str, graph.types[index].shape))
    if node.op in LEAVES:
        return Box(node.op, settings, shape, "input" if index in graph.inputs else "weight")
    role: Literal["instruction", "result"] = "result" if index == len(graph.nodes) - 1 else "instruction"
    return Box(node.op.replace("_", " "), settings, shape, role)
