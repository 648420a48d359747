"""The kinds of number, kept apart by type: measured, counted and predicted (simulated comes with the analog target).

A latency that was timed is a `Measurement`, one that a formula gave is a `Prediction`; no function accepts either where
it means the other, and `kind` follows every number into files and plots.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar, Literal

from gos_adapt.json_form import decode, decode_fields

CountUnit = Literal["mac", "flop", "parameter", "byte", "kernel"]
TINY_S, HUGE_S = 1e-100, 1e100
"""No latency lies beyond, so that ratios of latencies neither vanish nor overflow."""


@dataclass(frozen=True)
class Conditions:
    """Under what a measurement was taken; two measurements compare only when these agree but for the date.

    Attributes:
        device: Name of the `Device`.
        threads: Threads the measured code could use.
        date: ISO 8601, UTC, to the second.
        method: How it was timed, for example ``"rpc time_evaluator"``.
    """

    device: str
    threads: int
    date: str
    method: str


@dataclass(frozen=True)
class Measurement:
    """Latency samples of one thing on one device, or why there are none.

    Attributes:
        samples_s: Seconds for one execution each, in the order taken; empty exactly when `error` is set.
        conditions: Under what they were taken.
        error: Why nothing was measured; `None` for a success.
    """

    kind: ClassVar[str] = "measured"
    samples_s: tuple[float, ...]
    conditions: Conditions
    error: str | None = None

    def __post_init__(self) -> None:
        if bool(self.samples_s) == (self.error is not None):
            raise ValueError(f"samples or an error, not both or neither: got {self.samples_s=}, {self.error=}")
        if any(not TINY_S < sample < HUGE_S for sample in self.samples_s):
            raise ValueError(f"a latency must be positive and finite, got {self.samples_s}")

    @property
    def ok(self) -> bool:
        """Whether anything was measured."""
        return self.error is None

    @property
    def best_s(self) -> float:
        """Smallest sample: what the code can do when nothing disturbs it."""
        return min(self.samples_s)

    @property
    def median_s(self) -> float:
        """Median sample: what it did."""
        return median(self.samples_s)

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form (see docs/result-schema.md)."""
        form: dict[str, Any] = {
            "kind": self.kind,
            "unit": "s",
            "device": self.conditions.device,
            "threads": self.conditions.threads,
            "date": self.conditions.date,
            "method": self.conditions.method,
        }
        if self.ok:
            return form | {
                "best": self.best_s,
                "median": self.median_s,
                "n": len(self.samples_s),
                "samples": list(self.samples_s),
            }
        return form | {"error": self.error}

    @classmethod
    def from_json(cls, form: dict[str, Any]) -> Measurement:
        """Inverse of `to_json`.

        Raises:
            ValueError: `form`, an object that anyone may have written, is not such a form.
        """
        if (form.get("kind"), form.get("unit")) != (cls.kind, "s"):
            raise ValueError(f"expected kind {cls.kind!r} and unit 's'")
        return cls(
            decode(tuple[float, ...], form.get("samples", []), "samples"),
            decode_fields(Conditions, form, "conditions"),
            decode(str | None, form.get("error"), "error"),
        )


@dataclass(frozen=True)
class Count:
    """A number obtained by counting: exact, and the same on every machine."""

    kind: ClassVar[str] = "counted"
    value: int
    unit: CountUnit

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form."""
        return {"kind": self.kind, "unit": self.unit, "value": self.value}


@dataclass(frozen=True)
class Prediction:
    """A latency that a cost model gave and nobody timed."""

    kind: ClassVar[str] = "predicted"
    latency_s: float
    cost_model: str

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form."""
        return {"kind": self.kind, "unit": "s", "value": self.latency_s, "cost_model": self.cost_model}
