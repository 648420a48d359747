"""How good the search is: against random search, without its parts, level by level, by size of the operators.

    python benchmarks/search.py random        NSGA-II against random search
    python benchmarks/search.py ablate        the search without fitting, without the cascade, without crossover
    python benchmarks/search.py throughput    candidates that entered and left each level of the cascade
    python benchmarks/search.py size          by the number of instructions that an operator may have (thesis fig. 4.12)

Each searches for one kind of site of a model as the global strategy does, by latency change and loss (right after
fitting, nothing trained), with the same seeds and the same seconds for all that are compared, once for every search
seed; a search ends after the evaluation during which its seconds are over. The hypervolume is the share that a front
dominates of a box: from the original (nothing saved) to the largest saving of all searches of that kind, and from no
loss to 1.1 times the largest loss on their best front together; 1 would be the largest saving for nothing. Progress
goes to stderr, a Markdown table to stdout, and with --out FOLDER the hypervolume over time to a CSV file and a picture
there. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import plotly.graph_objects as go
from markdown_table import table
from pymoo.indicators.hv import HV

from device_targets import DEVICES
from device_targets.session import Session
from gos_adapt.bench import with_threads
from gos_adapt.environment import read_environment
from gos_adapt.errors import AdaptError, ConfigError
from gos_adapt.finetune.capture import capture
from gos_adapt.finetune.fit import relative_error
from gos_adapt.finetune.fit import run as computed
from gos_adapt.finetune.loss import LossJudge
from gos_adapt.model.load import load_model
from gos_adapt.operators.graph import THESIS, Limits
from gos_adapt.operators.torch_form import TorchOperator
from gos_adapt.progress import Silent
from gos_adapt.run_folder import RunFolder
from gos_adapt.search.candidate import Judgement
from gos_adapt.search.cascade import ACCURACY, ILL_TYPED, LEVELS, OUT_OF_TIME, SEEN, judge_one, timed
from gos_adapt.search.nsga import nsga2
from gos_adapt.search.objectives.latency import latency_change_s
from gos_adapt.search.objectives.loss import loss
from gos_adapt.search.random_search import random_search
from gos_adapt.search.search import Front, search
from gos_adapt.strategies.joint import ANY_LOSS, Joint, search_settings
from gos_adapt.strategies.setting import CASCADE_SAMPLES, SEARCH, Request
from gos_adapt.task import load_task
from gos_adapt.workbench import Workbench

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from gos_adapt.finetune.capture import Activations
    from gos_adapt.finetune.distil import Lessons
    from gos_adapt.model.model import Model, Site
    from gos_adapt.operators.graph import OperatorGraph
    from gos_adapt.search.candidate import Outcome, Weights
    from gos_adapt.search.cascade import Context, Levels, Settings
    from gos_adapt.search.nsga import Breeder

    Contexts = Callable[["Variant", Callable[[], float]], AbstractContextManager[Context]]

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT.parent / "shared" / "data" / "cifar10_resnet" / "resnet20_cifar10.onnx"
TASK = ROOT / "examples" / "tasks" / "resnet20_cifar10.toml"
SIZES = (5, 10, 15, 20, 25, 30, 40)
"""Instructions of an operator at most: thesis fig. 4.12 around its limit of 20."""
MARGIN = 1.1
"""Of the reference point beyond the worst loss on the best front, so that that point counts too."""
ENDLESS = 1_000_000
"""Generations, where the seconds end the search."""


@dataclass(frozen=True)
class Variant:
    """One way to search.

    Attributes:
        name: In tables.
        settings: The search's numbers.
        breeder: What proposes candidates.
        levels: What they go through.
        fitted: Whether weights are fitted before a candidate is judged.
    """

    name: str
    settings: Settings
    breeder: Breeder = nsga2
    levels: Levels = field(default_factory=lambda: LEVELS)
    fitted: bool = True


class Point(NamedTuple):
    """What an operator on a front offers: seconds that all sites together take less, and the loss of one."""

    saved_s: float
    loss: float


@dataclass(frozen=True)
class Run:
    """One search of a variant.

    Attributes:
        kind: Name of the first of the sites.
        curve: After each generation, seconds since the start and the front.
    """

    variant: str
    kind: str
    seed: int
    curve: tuple[tuple[float, tuple[Point, ...]], ...]
    front: Front

    def points(self, seconds: float = math.inf) -> tuple[Point, ...]:
        """The front as it was at that time; empty before the first generation was complete."""
        return next((points for at, points in reversed(self.curve) if at <= seconds), ())

    @property
    def judged(self) -> int:
        """How many candidates were judged."""
        return sum(outcome.judgement is not None and not outcome.is_original for outcome in self.front.outcomes)


# What is compared


def _search_settings() -> Settings:
    """As the global strategy searches, but until the time is over."""
    return search_settings(SEARCH, ENDLESS)


def _judge_all(outcomes: Sequence[Outcome], context: Context, settings: Settings) -> list[Outcome]:
    return [
        outcome.stopped(OUT_OF_TIME) if context.time_left() <= 0 else judge_one(outcome, context, settings)
        for outcome in outcomes
    ]


NO_CASCADE: Levels = {
    "measured latency": lambda outcomes, context, _settings: timed(outcomes, context),
    ACCURACY: _judge_all,
}
"""Every legal candidate is timed and judged."""


def variants(command: str, settings: Settings) -> tuple[Variant, ...]:
    """What a sub-command compares."""
    full = Variant("full", settings)
    match command:
        case "random":
            return (replace(full, name="NSGA-II"), replace(full, name="random", breeder=random_search))
        case "ablate":
            return (
                full,
                replace(full, name="without fitting", fitted=False),
                replace(full, name="without the cascade", levels=NO_CASCADE),
                replace(full, name="without crossover", settings=replace(settings, crossover=0.0)),
            )
        case "size":
            return tuple(
                replace(full, name=f"at most {nodes}", settings=replace(settings, limits=_limits(nodes)))
                for nodes in SIZES
            )
        case _:
            return (full,)


def _limits(nodes: int) -> Limits:
    """So many nodes, and edges in the thesis' proportion."""
    return Limits(nodes, nodes * THESIS.edges // THESIS.nodes)


# One search


def search_with(variant: Variant, contexts: Contexts, seed: int, seconds: float) -> Run:
    """Search for so many seconds."""
    start = time.monotonic()
    curve: list[tuple[float, tuple[Point, ...]]] = []

    def generation(_number: int, front: Front) -> None:
        curve.append((time.monotonic() - start, front_points(front)))

    with contexts(variant, lambda: start + seconds - time.monotonic()) as context:
        start = time.monotonic()  # what it took to prepare does not count
        front = search(context, variant.settings, seed, generation, breeder=variant.breeder, levels=variant.levels)
        return Run(variant.name, context.sites[0].name, seed, tuple(curve), front)


def front_points(front: Front) -> tuple[Point, ...]:
    """Return what on a front is faster than the original."""
    points = (Point(-latency_change_s(outcome), loss(outcome)) for outcome in front.best)
    return tuple(point for point in points if point.saved_s > 0)


class Unfitted:
    """Judges a candidate by the weights it came with, as `fit` and `LossJudge` do by fitted ones."""

    def __init__(self, model: Model, site: Site, lessons: Lessons, material: Activations) -> None:
        self._judge, self._material = LossJudge(model, site, lessons), material
        self._wanted = computed(TorchOperator(site.operator, site.weights), material.teacher_inputs)

    def error(self, operator: OperatorGraph, weights: Weights) -> float:
        """Relative error at the first site."""
        return relative_error(computed(TorchOperator(operator, weights), self._material.inputs), self._wanted)

    def judge(self, operator: OperatorGraph, weights: tuple[Weights, ...]) -> Judgement:
        """Distillation loss of the model that holds the operator at the first site."""
        return Judgement(None, min(ANY_LOSS, self._judge.loss(TorchOperator(operator, weights[0]))), weights)


# What came of it


def volumes(runs: Sequence[Run], seconds: float = math.inf) -> dict[int, float]:
    """Hypervolume of each run's front as it was at that time, in [0, 1], by position.

    Runs for the same kind of site share a reference point, taken from the final fronts of all of them.
    """
    found = {}
    for kind in dict.fromkeys(run.kind for run in runs):
        mine = [i for i, run in enumerate(runs) if run.kind == kind]
        saved_s, worst = reference([point for i in mine for point in runs[i].points()])
        for i in mine:
            found[i] = volume(runs[i].points(seconds), saved_s, worst)
    return found


def reference(points: Sequence[Point]) -> tuple[float, float]:
    """The largest saving among `points`, and 1.1 times the largest loss among those that no other dominates."""
    best = [
        point
        for point in points
        if not any(o.saved_s >= point.saved_s and o.loss <= point.loss and o != point for o in points)
    ]
    return max((p.saved_s for p in best), default=0.0), MARGIN * max((p.loss for p in best), default=0.0)


def volume(points: Sequence[Point], saved_s: float, worst: float) -> float:
    """Share of the box ``[0, saved_s] x [0, worst]`` that `points` dominate."""
    if not points or worst <= 0:
        return float(bool(points))  # the whole front of all is free of loss: having a share of it is all there is
    return float(HV(ref_point=np.ones(2))(np.array([[1 - p.saved_s / saved_s, p.loss / worst] for p in points])))


def comparison(runs: Sequence[Run], seconds: float, bound: float) -> list[str]:
    """One row for each search, then the mean of each variant over its seeds."""
    head = ("search", "kind of site", "seed", "hypervolume at a quarter", "at half", "at the end", "candidates")
    shares = [volumes(runs, share * seconds) for share in (0.25, 0.5, math.inf)]
    rows = [(run.variant, run.kind, str(run.seed), _numbers(run, i, shares, bound)) for i, run in enumerate(runs)]
    together: defaultdict[tuple[str, str], list[tuple[float | None, ...]]] = defaultdict(list)
    for name, kind, _seed, numbers in rows:
        together[name, kind].append(numbers)
    rows += [(name, kind, "mean", tuple(map(_mean, zip(*own, strict=True)))) for (name, kind), own in together.items()]
    return table(
        (*head, "judged", f"largest saving at a loss below {bound:g}, µs"),
        [(*names, *map(_text, numbers)) for *names, numbers in rows],
    )


def _numbers(run: Run, i: int, shares: Sequence[dict[int, float]], bound: float) -> tuple[float | None, ...]:
    return (*(volume[i] for volume in shares), len(run.front.outcomes), run.judged, fastest(run, bound))


def fastest(run: Run, bound: float) -> float | None:
    """Largest saving at a loss below `bound`, in microseconds; `None` when there is none."""
    return max((1e6 * point.saved_s for point in run.points() if point.loss < bound), default=None)


def throughput(runs: Sequence[Run]) -> list[str]:
    """One row for each level of each search: how many came too late, entered, were stopped, went on, and how fast."""
    head = ("kind of site", "seed", "level", "too late", "entered", "stopped", "went on", "seconds", "entered a minute")
    return table(head, [(run.kind, str(run.seed), *row) for run in runs for row in _levels(run)])


def _levels(run: Run) -> Iterator[tuple[str, ...]]:
    seconds = run.front.seconds
    late = Counter(outcome.level for outcome in run.front.outcomes if outcome.reason == OUT_OF_TIME)
    stopped = Counter(run.front.stopped) - late
    originals = sum(outcome.is_original for outcome in run.front.outcomes)
    alive = len(run.front.outcomes) - originals + stopped[ILL_TYPED] + stopped[SEEN]
    for name in (ILL_TYPED, SEEN, *LEVELS, ACCURACY):
        entered = run.judged if name == ACCURACY else alive - late[name]  # what waits has not entered it
        alive = entered - stopped[name]
        took = seconds.get(name, 0.0)
        rate = f"{60 * entered / took:.0f}" if took > 0 else "–"
        counts = map(str, (late[name], entered, stopped[name], alive))
        yield name, *counts, f"{took:.1f}" if name in seconds else "–", rate


def _mean(column: tuple[float | None, ...]) -> float | None:
    known = [value for value in column if value is not None]
    return fmean(known) if known else None


def _text(number: float | None) -> str:
    if number is None:
        return "–"
    return str(number) if isinstance(number, int) else f"{number:.3f}" if number < 10 else f"{number:.1f}"


def write_curves(runs: Sequence[Run], folder: Path) -> None:
    """Write the hypervolume after each generation of each search as ``curves.csv`` and as a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for at in sorted({at for run in runs for at, _ in run.curve}):
        now = volumes(runs, at)
        rows += [
            (run.variant, run.kind, run.seed, at, now[i])
            for i, run in enumerate(runs)
            if any(at == own for own, _ in run.curve)
        ]
    with (folder / "curves.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("search", "kind of site", "seed", "seconds", "hypervolume"), *rows])
    figure = go.Figure()
    for run in runs:
        own = [row for row in rows if row[:3] == (run.variant, run.kind, run.seed)]
        name = f"{run.variant}, {run.kind}, seed {run.seed}"
        line = {"shape": "hv"}
        figure.add_scatter(x=[row[3] for row in own], y=[row[4] for row in own], name=name, mode="lines", line=line)
    figure.update_layout(template="simple_white", xaxis_title="seconds", yaxis_title="hypervolume")
    figure.write_html(folder / "curves.html")


# The real thing


class Bench:
    """A model with its task on a device; every search begins with a folder and a workbench of its own."""

    def __init__(self, options: argparse.Namespace, session: Session, workbench: Workbench, folder: RunFolder) -> None:
        self._session = session
        self.model = load_model(options.model)
        self.setting = Joint(
            self.model,
            load_task(options.task, self.model.inputs, self.model.outputs),
            Request(epsilon=ANY_LOSS, max_sites=None, seed=0),
            workbench,
            folder,
            Silent(),
            lambda: math.inf,
            lambda *_: None,
        )
        (self.profile,) = self.setting.profiles("original", self.model)
        self.lessons = self.setting.lessons

    @contextmanager
    def context(self, group: tuple[Site, ...], variant: Variant, time_left: Callable[[], float]) -> Iterator[Context]:
        """What a search for `group` needs, with nothing left of an earlier search."""
        judge = partial(LossJudge, self.model, group[0], self.lessons)
        context = self.setting.context(self.model, group, self.profile, judge, time_left)
        if not variant.fitted:
            material = capture(self.model, group[:1], self.setting.samples[:CASCADE_SAMPLES])[group[0].name]
            unfitted = Unfitted(self.model, group[0], self.lessons, material)
            context = replace(context, fit_error=unfitted.error, judge=unfitted.judge)
        with (
            TemporaryDirectory(prefix="adapt-") as scratch,
            RunFolder.open(Path(scratch) / "run", {}) as folder,
            Workbench(self._session) as workbench,  # has compiled no candidate yet
        ):
            yield replace(context, measure=workbench.measure_operators, folder=folder)


def main() -> int:
    """Run one sub-command; return the exit code."""
    options = _options()
    try:
        runs = _search_all(options)
    except AdaptError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    machine = read_environment()
    lines = throughput(runs) if options.command == "throughput" else comparison(runs, options.seconds, options.loss)
    model = f"{options.model.stem}, {options.seconds:g} s a search"
    print(f"{machine.cpu}, {machine.cores} cores, load {machine.load}; {machine.date}; {model}\n")
    print("\n".join(lines))
    if options.out:
        write_curves(runs, options.out)
    return 0


def _search_all(options: argparse.Namespace) -> list[Run]:
    device = with_threads(DEVICES["host"](), options.threads)
    with (
        TemporaryDirectory(prefix="adapt-") as scratch,
        Session(device) as session,
        Workbench(session) as workbench,
        RunFolder.open(Path(scratch) / "run", {}) as folder,
    ):
        bench = Bench(options, session, workbench, folder)
        runs = []
        for group in _chosen(bench.setting.kinds(bench.profile), options.kind):
            for seed in range(options.seeds):
                for variant in variants(options.command, _search_settings()):
                    found = search_with(variant, partial(bench.context, group), seed, options.seconds)
                    print(f"{found.kind}, seed {seed}, {variant.name}: {found.front.described}", file=sys.stderr)
                    runs.append(found)
        return runs


def _chosen(kinds: list[tuple[Site, ...]], wanted: str) -> list[tuple[Site, ...]]:
    if wanted == "all":
        return kinds
    if wanted == "largest":
        return [max((group for group in kinds if group[0].kind == "branch"), key=len, default=kinds[0])]
    for group in kinds:
        if any(site.name == wanted for site in group):
            return [group]
    names = ", ".join(f"{group[0].name} ({len(group)} x {group[0].kind})" for group in kinds)
    raise ConfigError(f"--kind {wanted}: no such site; known: {names}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("random", "ablate", "throughput", "size"))
    parser.add_argument("--model", type=Path, default=MODEL, help="resnet20 by default")
    parser.add_argument("--task", type=Path, default=TASK, help="its task file")
    parser.add_argument(
        "--kind", default="largest", help="a site's name, all, or the branch that occurs most often (largest)"
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="of each search")
    parser.add_argument("--seeds", type=int, default=3, help="searches of each kind")
    parser.add_argument("--loss", type=float, default=0.1, help="bound for the column of savings")
    parser.add_argument("--threads", type=int, help="of the device; all by default")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the hypervolume over time there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
