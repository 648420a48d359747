"""What one adaptation found: everything `result.json` and the report hold.

Only what was observed is stored. Whatever follows from it (speed-ups, the accuracy lost, the profile gap, the Amdahl
bound, the verdict) is a property, and is written under ``"derived"`` for readers of the file; reading it computes
them again. Latencies are in seconds. The file form is described in docs/result-schema.md.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

# Imported for good, not for type checkers only: `json_form` reads the hints of every field.
from gos_adapt.environment import Environment  # noqa: TC001
from gos_adapt.errors import RunFolderError
from gos_adapt.json_form import decode_fields, encode_fields
from gos_adapt.model.model import TensorSpec  # noqa: TC001
from gos_adapt.profiling.select import amdahl_bound
from gos_adapt.quantities import Count, Measurement  # noqa: TC001
from gos_adapt.verdict import verdict

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = 1
MAX_FILE_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Measured:
    """One measured number that is not a series of latency samples.

    Attributes:
        value: Finite.
        unit: ``"s"``, ``"fraction"`` (0 to 1), ``"1"`` (dimensionless), or the metric's own unit.
    """

    kind: ClassVar[str] = "measured"
    value: float
    unit: str

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"a measured number must be finite, got {self.value}")


@dataclass(frozen=True)
class ModelSummary:
    """The model as it was given."""

    name: str
    key: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class DeviceSummary:
    """The device everything was timed on."""

    name: str
    kind: str
    target: str
    threads: int
    memory_bytes: int


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        epsilon: Accuracy that may be lost, as `Metric.drop` counts it: a difference of fractions, or the growth of an
            error relative to it. Unused without a task.
        max_sites: Most sites to replace; None for the strategy's own bound.
        budget_s: Longest the run may take; None for no bound.
        seed: Of the one random generator.
        strategy: How replacements were chosen.
        target_latency_s: To be reached, positive; None when it was not asked for.
        speed_up: Likewise, over the compiled original.
        train_all: Whether layers that kept their operator were trained too.
        also_minimise: What the search traded off beside what its strategy does.
    """

    epsilon: float
    max_sites: int | None
    budget_s: float | None
    seed: int
    strategy: str
    target_latency_s: float | None
    speed_up: float | None
    train_all: bool
    also_minimise: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, asked in (("target_latency_s", self.target_latency_s), ("speed_up", self.speed_up)):
            if asked is not None and asked <= 0:
                raise ValueError(f"{name} must be positive, got {asked}")


@dataclass(frozen=True)
class Accuracy:
    """The task's metric, of the models as shipped, on one split that no decision used.

    Attributes:
        metric: For example ``"top-1"``; not empty.
        higher_is_better: Direction of the metric.
        split: Name of the split.
        n: Samples in it.
        original: Of the model as given.
        adapted: Of the adapted model (equal to `original` when nothing was replaced).
        onnxruntime_int8: Of the int8 baseline, so that nobody reads its latency without its price; None if unknown.
    """

    metric: str
    higher_is_better: bool
    split: str
    n: int
    original: Measured
    adapted: Measured
    onnxruntime_int8: Measured | None

    def __post_init__(self) -> None:
        if not self.metric:
            raise ValueError("the metric has no name")

    @property
    def lost(self) -> float:
        """What adaptation cost, in the metric's unit; negative when it gained."""
        change = self.original.value - self.adapted.value
        return change if self.higher_is_better else -change


class SpeedUp(NamedTuple):
    """How many times faster the adapted model is: ratio of the best samples and of the medians."""

    best: float
    median: float


@dataclass(frozen=True)
class Latencies:
    """Whole-model latencies, interleaved in one run with equal thread counts.

    A baseline that could not be had is a failed `Measurement` with its reason.

    Attributes:
        batch: Samples in one execution.
        original: The original model, compiled by us.
        adapted: What is delivered, compiled by us.
        onnxruntime_fp32: The original model in ONNX Runtime.
        onnxruntime_int8: The original model, statically quantised (QDQ), in ONNX Runtime.
    """

    BASELINES: ClassVar[dict[str, str]] = {
        "original": "the compiled original",
        "onnxruntime_fp32": "ONNX Runtime fp32",
        "onnxruntime_int8": "ONNX Runtime int8",
    }

    batch: int
    original: Measurement
    adapted: Measurement
    onnxruntime_fp32: Measurement
    onnxruntime_int8: Measurement

    @property
    def baselines(self) -> dict[str, Measurement]:
        """The three baselines by field name, measured or not."""
        return {name: getattr(self, name) for name in self.BASELINES}

    @property
    def best_baseline(self) -> str | None:
        """Field name of the baseline with the smallest median; None when none was measured."""
        measured = {name: baseline for name, baseline in self.baselines.items() if baseline.ok}
        return min(measured, key=lambda name: measured[name].median_s, default=None)

    def speed_up(self, baseline: str) -> SpeedUp | None:
        """Compare the adapted model with a baseline (by field name); None when either was not measured."""
        against = self.baselines[baseline]
        if not (against.ok and self.adapted.ok):
            return None
        return SpeedUp(against.best_s / self.adapted.best_s, against.median_s / self.adapted.median_s)


@dataclass(frozen=True)
class Change:
    """A count before and after."""

    before: Count
    after: Count


@dataclass(frozen=True)
class ProfileSummary:
    """The compiled original, as a whole and as the sum of its kernels.

    Attributes:
        whole: The model timed end to end.
        kernels: Median of the sum of all kernels, timed inside the model, in seconds; None when one was not measured.
        kernel_count: How many.
    """

    whole: Measurement
    kernels: Measured | None
    kernel_count: Count

    @property
    def gap(self) -> float | None:
        """(sum of kernels - whole) / whole, that of `Profile.gap`; None when something was not measured."""
        if self.kernels is None or not self.whole.ok:
            return None
        return self.kernels.value / self.whole.median_s - 1


@dataclass(frozen=True)
class Formula:
    """An operator's equation as plain text, LaTeX and presentation MathML."""

    text: str
    latex: str
    mathml: str


@dataclass(frozen=True)
class OperatorSummary:
    """An operator at a site: its identity, equation, counts and latency on the device.

    Attributes:
        text: `OperatorGraph.text`, canonical; `operators.text.parse` reads it.
        traffic: Bytes read and written for one sample if every instruction went through memory.
        kernels: Of the compiled model, that compute any part of it; one may be shared with a neighbour.
    """

    key: str
    text: str
    formula: Formula
    macs: Count
    parameters: Count
    traffic: Count
    kernels: Count
    latency: Measurement


@dataclass(frozen=True)
class SiteResult:
    """One replaceable place and what became of it.

    Attributes:
        name: `Site.name`.
        kind: `Site.kind`.
        overlaps: Names of the sites that share nodes with it (a branch and its layers).
        searched: Whether selection gave it to a search.
        reason: Why it was searched or not, and why it kept its operator if it did.
        original: What it computed.
        replacement: What it computes now; None when it kept its operator.
        retrained: Whether it kept its operator and its weights were trained with the replacements.
        lineage: How the replacement came to be, oldest first.
    """

    name: str
    kind: str
    overlaps: tuple[str, ...]
    searched: bool
    reason: str
    original: OperatorSummary
    replacement: OperatorSummary | None
    retrained: bool
    lineage: tuple[str, ...]


@dataclass(frozen=True)
class CandidateResult:
    """One operator the search looked at closely enough to fit or time it.

    Attributes:
        latency_change: Candidate minus original at one site, in seconds; None when it was not timed.
        accuracy: Of the model holding it, on the selection split; None when it did not get that far.
        loss: What its judgement said is lost: of the metric, counted as `Options.epsilon` is; without a task the
            deviation of the outputs; with the global strategy the distillation loss right after fitting. None when it
            was not judged.
        fit_error: Normalised error against the original's output; None when it was not fitted.
        outcome: Where it ended: ``"feasible"`` or the level that rejected it.
        feasible: Whether it met every constraint.
        on_front: Whether no feasible candidate of its group dominates it.
        chosen: Whether it was put into the model.
    """

    key: str
    text: str
    latency_change: Measured | None
    parameters: Count
    macs: Count
    accuracy: Measured | None
    loss: Measured | None
    fit_error: Measured | None
    outcome: str
    feasible: bool
    on_front: bool
    chosen: bool
    lineage: tuple[str, ...]


@dataclass(frozen=True)
class GroupSearch:
    """One search: for one group of alike sites.

    Attributes:
        name: What a person would call the group.
        sites: Names of its sites.
        outcomes: How many candidates ended at each level of the cascade, in its order, levels that took time included;
            their sum is what was proposed. Those that no level came to are ``"out of time"`` or ``"not judged"``.
        levels_s: Seconds spent at each level.
        candidates: Every candidate that was fitted or timed, in the order of evaluation.
    """

    name: str
    sites: tuple[str, ...]
    outcomes: dict[str, int]
    levels_s: dict[str, float]
    candidates: tuple[CandidateResult, ...]


@dataclass(frozen=True)
class Verification:
    """How the compiled artefact compares with the adapted ONNX model in ONNX Runtime.

    Attributes:
        inputs: Inputs compared.
        deviation: Largest absolute difference over the output's scale.
        tolerance: What would have been refused.
    """

    inputs: int
    deviation: Measured
    tolerance: float


@dataclass(frozen=True)
class Result:
    """Everything one adaptation found.

    Attributes:
        accuracy: None when no task was given.
        parameters: Of the whole model.
        macs: Of all sites, what they share once; what no site covers is left out.
        stages_s: Seconds spent in each stage by all processes of the run, in order.
        notes: What else a reader must know, one sentence each.
    """

    model: ModelSummary
    device: DeviceSummary
    options: Options
    environment: Environment
    accuracy: Accuracy | None
    latency: Latencies
    parameters: Change
    macs: Change
    profile: ProfileSummary
    sites: tuple[SiteResult, ...]
    search: tuple[GroupSearch, ...]
    stages_s: dict[str, float]
    verification: Verification
    notes: tuple[str, ...]

    @property
    def replaced(self) -> tuple[SiteResult, ...]:
        """Sites that hold another operator now."""
        return tuple(site for site in self.sites if site.replacement is not None)

    @property
    def excess(self) -> float | None:
        """Share by which what is delivered exceeds the latency asked for, by medians; None as in `reached`."""
        ratio, adapted = self.latency.speed_up("original"), self.latency.adapted
        if self.options.speed_up is not None:
            return self.options.speed_up / ratio.median - 1 if ratio else None
        if self.options.target_latency_s is not None:
            return adapted.median_s / self.options.target_latency_s - 1 if adapted.ok else None
        return None

    @property
    def reached(self) -> bool | None:
        """Whether what is delivered has the latency asked for; None when none was asked for or measured."""
        return None if self.excess is None else self.excess <= 0

    @property
    def amdahl_bound(self) -> float | None:
        """Speed-up if the searched sites cost nothing, of overlapping ones the largest; None when that has no bound.

        Also None when a kernel was not measured. Reference: Amdahl's law on kernel latencies.
        """
        if self.profile.kernels is None:
            return None
        counted: list[SiteResult] = []
        searched = [site for site in self.sites if site.searched and site.original.latency.ok]
        for site in sorted(searched, key=lambda site: -site.original.latency.median_s):
            if not any(site.name in other.overlaps or other.name in site.overlaps for other in counted):
                counted.append(site)
        bound = amdahl_bound(self.profile.kernels.value, sum(site.original.latency.median_s for site in counted))
        return bound if math.isfinite(bound) else None

    @property
    def verdict(self) -> str:
        """One honest sentence."""
        return verdict(self)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `result.json`."""
        return {"schema": SCHEMA, "derived": self._derived()} | encode_fields(self)

    @classmethod
    def from_json(cls, form: Any) -> Result:
        """Inverse of `to_json`; what is derived is computed again.

        Raises:
            RunFolderError: `form` is not a result of this schema; the message says where.
        """
        schema = form.get("schema") if isinstance(form, dict) else None
        if schema != SCHEMA:
            raise RunFolderError(f"result.json: expected schema {SCHEMA}, got {schema!r:.40}; adapt the model again")
        try:
            return decode_fields(cls, form, "result.json")  # type: ignore[no-any-return]
        except (ValueError, RecursionError) as error:
            raise RunFolderError(f"{error}; adapt the model again") from error

    def _derived(self) -> dict[str, Any]:
        gap, bound, best = self.profile.gap, self.amdahl_bound, self.latency.best_baseline
        ratios = {name: self.latency.speed_up(name) for name in Latencies.BASELINES}
        return {
            "verdict": self.verdict,
            "speed_up": {name: ratio and ratio._asdict() for name, ratio in ratios.items()},
            "best_baseline": best,
            "reached": self.reached,
            "accuracy_lost": self.accuracy and self.accuracy.lost,
            "profile_gap": gap,
            "amdahl_bound": bound,
        }


def read_result(path: Path) -> Result:
    """Read a `result.json`.

    Raises:
        RunFolderError: The file is missing, too large, or not a result.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RunFolderError(
                f"{path}: larger than {MAX_FILE_BYTES} bytes, which no result is; adapt the model again"
            )
        form = json.loads(path.read_bytes())
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read ({error.strerror}); give the folder of a finished run") from error
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path}: not JSON ({error}); adapt the model again") from error
    return Result.from_json(form)
