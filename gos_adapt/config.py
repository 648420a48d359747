"""What a user asks for, checked before anything is loaded."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from device_targets import DEVICES
from device_targets.reach import HERE, Reach
from gos_adapt.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from gos_adapt.task import Task

StrategyName = Literal["iterative", "global"]
STRATEGY_NAMES: tuple[StrategyName, ...] = get_args(StrategyName)
Objective = Literal["parameters", "memory", "energy"]
OBJECTIVE_NAMES: tuple[Objective, ...] = get_args(Objective)
_LATENCY = re.compile(r"(\d+(?:\.\d+)?)\s*(s|ms|us|µs)")
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


@dataclass(frozen=True)
class AdaptConfig:
    """One adaptation, as asked for.

    Attributes:
        model: An ONNX file, a ``torch.export`` archive (``.pt2``), or a module (then with `example_inputs`).
        target: Name of a device in `device_targets.DEVICES`.
        task: Data, metric and splits, or the TOML file that says them; `None` allows only rewrites that keep the
            function within numerical tolerance.
        epsilon: Loss of the task's metric that is acceptable (`Metric.drop`): absolute for fractions (top-1: 0.01 is
            one point), relative for errors (mean absolute error: 0.01 is one per cent more).
        max_sites: Replace at most this many sites; `None` for 10 with the iterative strategy (the thesis' number), and
            for any number with the global one.
        budget_s: Seconds after which the best result so far is delivered (15 minutes by default); `None` for no limit.
        seed: Of everything random.
        strategy: ``"global"`` chooses all replacements at once and needs a task, ``"iterative"`` the worst operator
            first; `None` for global where there is a task.
        target_latency_s: Latency of the whole model to reach, at the least loss; epsilon then stops nothing.
        speed_up: The same, as a factor on our compiled original's latency.
        train_all: Whether recovery trains the layers too that keep their operator.
        also_minimise: What the search trades off beside what its strategy does.
        out: Where `folder` is; `None` for ``runs/<model>-<target>``.
        policy: Continue the run that is in `out`, or discard it.
        example_inputs: One tensor per input of a module.
        reach: Where the target is, if it is not this machine.

    Raises:
        ConfigError: a value is out of its range, or the target is unknown.
    """

    model: Path | torch.nn.Module
    target: str = "host"
    task: Path | Task | None = None
    epsilon: float = 0.01
    max_sites: int | None = None
    budget_s: float | None = 900.0
    seed: int = 0
    strategy: StrategyName | None = None
    target_latency_s: float | None = None
    speed_up: float | None = None
    train_all: bool = False
    also_minimise: tuple[Objective, ...] = ()
    out: Path | None = None
    policy: Literal["resume", "fresh"] = "resume"
    example_inputs: tuple[torch.Tensor, ...] = ()
    reach: Reach = HERE

    def __post_init__(self) -> None:
        for name in ("model", "task", "out"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, Path(getattr(self, name)))
        check_target(self.target)
        if isinstance(self.model, Path) == bool(self.example_inputs):
            raise ConfigError(
                "example inputs go with a module and only with one: give a Path, or a module and its inputs"
            )
        if not (0 <= self.epsilon < math.inf):
            raise ConfigError(f"epsilon must be a finite number of at least 0, got {self.epsilon}; try 0.01")
        if self.max_sites is not None and self.max_sites < 1:
            raise ConfigError(f"max sites must be at least 1, got {self.max_sites}; 'adapt profile' changes nothing")
        if self.budget_s is not None and not (0 < self.budget_s < math.inf):
            raise ConfigError(f"the budget must be positive, got {self.budget_s} s; try 15m")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"the seed must be from 0 to {2**32 - 1}, got {self.seed}")
        if self.strategy not in (None, *STRATEGY_NAMES):
            raise ConfigError(f"the strategy must be one of {', '.join(STRATEGY_NAMES)}, got {self.strategy!r}")
        if self.strategy == "global" and self.task is None:
            raise ConfigError("the global strategy trains what it chose, so it needs a task; give one, or 'iterative'")
        if self.train_all and self.task is None:
            raise ConfigError("training all layers needs a task: give one")
        if self.target_latency_s is not None and not (0 < self.target_latency_s < math.inf):
            raise ConfigError(f"the target latency must be positive, got {self.target_latency_s} s; try 0.4ms")
        if self.speed_up is not None and not (1 < self.speed_up < math.inf):
            raise ConfigError(f"the speed-up must be above 1, got {self.speed_up}; try 2")
        if self.target_latency_s is not None and self.speed_up is not None:
            raise ConfigError("give a target latency or a speed-up, not both: each says what to reach")
        if unknown := [name for name in self.also_minimise if name not in OBJECTIVE_NAMES]:
            raise ConfigError(f"also minimised can be {', '.join(OBJECTIVE_NAMES)}, got {unknown[0]!r}")
        if self.policy not in ("resume", "fresh"):
            raise ConfigError(f"the policy must be 'resume' or 'fresh', got {self.policy!r}")

    def strategy_for(self, task: Task | None) -> StrategyName:
        """Return the strategy: the one asked for, or the default with or without a task."""
        return self.strategy or ("iterative" if task is None else "global")

    @property
    def model_name(self) -> str:
        """Short name of the model, for folders and reports."""
        return self.model.stem if isinstance(self.model, Path) else type(self.model).__name__

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / f"{self.model_name}-{self.target}"


def check_target(name: str) -> None:
    """Refuse a target that is not a known device, or that nothing can be compiled for.

    Raises:
        ConfigError: with the nearest names.
    """
    if name not in DEVICES:
        near = get_close_matches(name, DEVICES, n=3, cutoff=0.5) or sorted(DEVICES)
        raise ConfigError(f"unknown target {name!r}; did you mean {' or '.join(near)}? 'adapt devices' lists all")
    if DEVICES[name]().kind != "cpu":
        raise ConfigError(f"code for {name} cannot be generated yet: the schedules are for CPUs")


def parse_duration(text: str) -> float:
    """Seconds in a duration such as ``"90s"``, ``"15m"`` or ``"1h30m"``.

    Raises:
        ConfigError: it is not a duration, or it is zero.
    """
    match = _DURATION.fullmatch(text.strip())
    seconds = (
        sum(float(count or 0) * unit for count, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0
    )
    if not 0 < seconds < math.inf:
        raise ConfigError(f"a duration looks like 90s, 15m or 1h30m, got {text!r}")
    return seconds


def parse_latency(text: str) -> float:
    """Seconds in a latency such as ``"0.4ms"`` or ``"250us"``.

    Raises:
        ConfigError: it is not a latency.
    """
    match = _LATENCY.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"a latency looks like 0.4ms, 250us or 1.5s, got {text!r}")
    value, unit = match.groups()
    return float(value) * {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}[unit]
