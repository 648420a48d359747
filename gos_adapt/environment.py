"""What a run ran on: read once, written beside every result."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "gos-adapt",
    "apache-tvm",
    "apache-tvm-ffi",
    "torch",
    "onnx",
    "onnxruntime",
    "numpy",
    "pymoo",
    "networkx",
    "sympy",
)


@dataclass(frozen=True)
class Environment:
    """The machine that ran the search (not the target: that is the device).

    Attributes:
        cpu: Model name.
        cores: Logical processors this process may use.
        architecture: For example ``"x86_64"``.
        system: Operating system and kernel release.
        python: Version of the interpreter.
        packages: Package name to version; absent packages are left out.
        governor: Frequency governor of the first processor; None where the system does not say.
        load: Runnable processes, mean over the last minute: what disturbed the measurements; None where unknown.
        date: ISO 8601, UTC, to the second.
    """

    cpu: str
    cores: int
    architecture: str
    system: str
    python: str
    packages: dict[str, str]
    governor: str | None
    load: float | None
    date: str


def read_environment() -> Environment:
    """Read the environment of this process, now."""
    return Environment(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages=_packages(),
        governor=_first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, platform.processor() or "unknown")


def _packages() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
