"""Find the fastest variant of every kernel of a model, on the device.

In rounds, for a few kernels at a time: build all variants of all of them in processes of their own, then time them with
nothing else running, the variants of a kernel in turns. The first round tries register tiles, two more the neighbours
of the fastest, one knob at a time, if there are faster ones. The best few, if they compute what the unscheduled
kernel computes, meet again in a longer, final look. What fails to build, crashes the device or computes something else
is recorded with its reason and costs only itself.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

import tvm_passes.schedules
from device_targets.session import LOST, Effort, Evaluator, Library, Session, measure
from gos_adapt.errors import DeviceError, DeviceUnreachableError, Rejection
from gos_adapt.model.random_array import random_arrays
from gos_adapt.quantities import Measurement
from gos_adapt.tuning.store import Look, Record, Store
from tvm_passes.build import cpu_of, target_of
from tvm_passes.build_pool import BuildPool, Trial, TrialLibrary
from tvm_passes.compat import PrimFunc, tvm
from tvm_passes.pipeline import parameters_of
from tvm_passes.schedules import RULES, Scheduled, Variant, schedule_kernel, variants

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from device_targets import Device
    from tvm_passes.schedules import Cpu

    Kernels = Mapping[str, tuple[PrimFunc, frozenset[int]]]

Array = np.ndarray[Any, Any]

ROUNDS = 3
"""Register tiles, neighbours of the fastest, and theirs."""
FINALISTS = 3
TOGETHER = 8
"""Kernels tuned at a time: what is lost when the process is killed."""
LOOK, FINAL = Effort(rounds=1, samples=4), Effort(rounds=4, samples=4)
TOLERANCE = 1e-3
"""Of a result, relative to its scale. Winograd's tiles of four by four deviate by 1e-5; a wrong schedule, by all."""


@dataclass
class Tuning:
    """What tuning took.

    Attributes:
        trials: Variants built and timed now.
        failed: Reasons of those that could not be, by "kernel variant".
        untunable: Why a kernel keeps TVM's order, by its key: no rule takes it, or no variant could be measured.
    """

    trials: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    untunable: dict[str, str] = field(default_factory=dict)


class Tuner:
    """Tunes kernels on one device through its session; a context manager that owns the building processes."""

    def __init__(self, session: Session, store: Store) -> None:
        self.session, self.store = session, store
        self._folder = TemporaryDirectory(prefix="adapt-tune-")
        self._pool = BuildPool(session.device, Path(self._folder.name))
        self._cpu = cpu_of(session.device)
        self._numbers = itertools.count(1)
        self._tried: set[str] = set()
        self._loaded: dict[Path, tuple[object, Library]] = {}

    def __enter__(self) -> Tuner:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.__exit__()
        self._folder.cleanup()

    def choose(self, kernel: str) -> Variant | Rejection | None:
        """Return the fastest known variant of a kernel (see `tvm_passes.schedule_kernels.Choose`)."""
        if record := self.store.best(kernel):
            return Variant.parse(record.variant, RULES)
        return _nothing_measured([trial.error for trial in self.store.trials(kernel)])

    def unknown(self, kernels: Kernels) -> Kernels:
        """Return the kernels of which no variant is known to run, and that were not tried here.

        One that failed for an earlier process may do now: perhaps there was no room, or no time on a loaded machine.
        """
        return {key: func for key, func in kernels.items() if key not in self._tried and not self.store.best(key)}

    def tune(self, kernels: Kernels, advance: Callable[[], None] = lambda: None) -> Tuning:
        """Tune kernels and remember what was measured.

        Args:
            kernels: Key -> unscheduled kernel and positions of its constants (`tvm_passes.pipeline.Fused.kernels`).
            advance: Called once for each kernel.

        Raises:
            DeviceUnreachableError: the device is gone; what was finished is in the store.
        """
        tuning = Tuning()
        keys = list(kernels)
        for start in range(0, len(keys), TOGETHER):
            together = keys[start : start + TOGETHER]
            self._tune({key: kernels[key] for key in together}, tuning)
            self._tried.update(together)
            for _ in together:
                advance()
        return tuning

    def _tune(self, kernels: Kernels, tuning: Tuning) -> None:
        contests = []
        for key, (func, constants) in kernels.items():
            first = variants(func, self._cpu)
            if isinstance(first, Rejection):
                tuning.untunable[key] = first.reason
            else:
                contests.append(_Contest(key, func, constants, list(first)))
        for following in range(ROUNDS - 1, -1, -1):
            self._build(contests, tuning)
            for contest in contests:
                if contest.waiting:
                    contest.note(self._time(contest, contest.waiting + contest.fastest(1), LOOK))
                contest.waiting = contest.neighbours(self._cpu) if following else []
        date = datetime.now(UTC).isoformat(timespec="seconds")
        for contest in contests:
            final = self._time(contest, self._finalists(contest), FINAL)
            self.store.put(contest.records(final, date))
            tuning.failed |= {f"{contest.key} {v.to_text()}": m.error for v, m in contest.seen.items() if m.error}
            if not contest.fastest(1) and (nothing := _nothing_measured([m.error for m in contest.seen.values()])):
                tuning.untunable[contest.key] = nothing.reason
        for path in self._loaded:
            path.unlink()  # timed: nothing needs it any more
        self._loaded.clear()

    def _build(self, contests: Sequence[_Contest], tuning: Tuning) -> None:
        """Build what waits in the contests; what cannot be built is seen as failed."""
        waiting = [(contest, variant) for contest in contests for variant in contest.waiting]
        tuning.trials += len(waiting)
        unscheduled = [(contest, None) for contest in contests if None not in contest.built]
        homes = {f"trial_{next(self._numbers)}": home for home in [*unscheduled, *waiting]}
        trials = {name: Trial(c.key, c.func, c.constants, variant) for name, (c, variant) in homes.items()}
        for library in self._pool.build(trials):
            for name in library.parameters:
                contest, variant = homes[name]
                contest.built[variant] = (library, name)
            for name, reason in library.refused.items():
                contest, variant = homes[name]
                if variant is not None:
                    contest.seen[variant] = Measurement((), self.session.conditions(), reason)
                    contest.waiting.remove(variant)

    def _finalists(self, contest: _Contest) -> list[Variant]:
        """Return the finalists of a contest once all of them are right; what is wrong is seen as failed."""
        arrays = random_arrays(parameters_of(contest.func))
        wanted = None
        right: set[Variant] = set()
        while unchecked := [variant for variant in contest.finalists() if variant not in right]:
            wanted = wanted or self._results(contest, None, arrays)
            for variant in unchecked:
                reason = _difference(self._results(contest, variant, arrays), wanted)
                if reason is None:
                    right.add(variant)
                else:
                    contest.seen[variant] = Measurement((), self.session.conditions(), reason)
        return contest.finalists()

    def _results(
        self, contest: _Contest, variant: Variant | None, arrays: Sequence[Array]
    ) -> tuple[Array, ...] | Rejection:
        """Run a kernel once; return its parameters afterwards but for the constants, or why it did not run."""
        if variant not in contest.built:
            return Rejection("the unscheduled kernel could not be built, so there is nothing to compare with")
        library, name = contest.built[variant]
        stored = contest.stored(variant, arrays, self._cpu)
        others = [i for i in range(len(stored)) if i not in contest.constants]
        try:
            return self._load(library).run_kernel(name, stored, others)
        except (DeviceError, DeviceUnreachableError) as failure:
            self.session.ensure_alive()  # then it was loading or running this variant that ended it
            return Rejection(str(failure))

    def _time(self, contest: _Contest, who: Sequence[Variant], effort: Effort) -> dict[Variant, Measurement]:
        """Time variants of one kernel in turns; what another one's crash took with it is timed again without that."""
        names = {contest.built[variant][1]: variant for variant in who}
        evaluators = {name: partial(self._evaluator, *contest.built[variant]) for name, variant in names.items()}
        measured = measure(self.session, evaluators, effort)
        self.session.ensure_alive()  # a device that is gone is no variant's fault
        found = {names[name]: measurement for name, measurement in measured.items()}
        lost = [variant for variant, measurement in found.items() if (measurement.error or "").startswith(LOST)]
        if lost and len(lost) < len(found):
            found |= self._time(contest, lost, effort)
        return found

    def _evaluator(self, library: TrialLibrary, name: str) -> Evaluator:
        return self._load(library).kernel_evaluator(name, library.parameters[name])

    def _load(self, library: TrialLibrary) -> Library:
        self.session.ensure_alive()
        if self._loaded.get(library.path, (None, None))[0] is not self.session.connection:
            self._loaded[library.path] = self.session.connection, self.session.load(library.path)
        return self._loaded[library.path][1]


class _Contest:
    """The variants of one kernel: those to be tried next, and what was seen of the others."""

    def __init__(self, key: str, func: PrimFunc, constants: frozenset[int], waiting: list[Variant]) -> None:
        self.key, self.func, self.constants, self.waiting = key, func, constants, waiting
        self.built: dict[Variant | None, tuple[TrialLibrary, str]] = {}  # `None`: unscheduled
        self.seen: dict[Variant, Measurement] = {}
        self._asked: Variant | None = None

    def stored(self, variant: Variant | None, arrays: Sequence[Array], cpu: Cpu) -> list[Array]:
        """Return what a variant is to be given for `arrays`: constants in the order it wants them."""
        if variant is None:
            return list(arrays)
        scheduled = schedule_kernel(self.func, cpu, self.constants, variant)
        assert isinstance(scheduled, Scheduled), "what was built could be scheduled"
        storage = scheduled.constants
        return [storage[i].apply(array) if i in storage else array for i, array in enumerate(arrays)]

    def note(self, measured: Mapping[Variant, Measurement]) -> None:
        """Remember the better of two looks at a variant."""
        for variant, new in measured.items():
            old = self.seen.get(variant)
            if old is None or not old.ok or (new.ok and new.best_s < old.best_s):
                self.seen[variant] = new

    def fastest(self, count: int) -> list[Variant]:
        """Return the fastest variants seen so far."""
        good = [variant for variant, measurement in self.seen.items() if measurement.ok]
        return sorted(good, key=lambda variant: self.seen[variant].best_s)[:count]

    def finalists(self) -> list[Variant]:
        """Return the fastest variants, first one for each size of all operands: sizes tell in cold caches."""
        fastest = self.fastest(len(self.seen))
        size = {variant: self._size(*self.built[variant]) for variant in fastest}
        of_each = [variant for i, variant in enumerate(fastest) if size[variant] not in map(size.get, fastest[:i])]
        return list(dict.fromkeys([*of_each, *fastest]))[:FINALISTS]

    @staticmethod
    def _size(library: TrialLibrary, name: str) -> int:
        return sum(prod(shape) for shape, _ in library.parameters[name])

    def neighbours(self, cpu: Cpu) -> list[Variant]:
        """Return untried neighbours of the fastest variant, when that is another one than the last time."""
        fastest = self.fastest(1)
        if not fastest or fastest[0] == self._asked:
            return []
        self._asked = fastest[0]
        found = variants(self.func, cpu, self._asked)
        return [] if isinstance(found, Rejection) else [variant for variant in found if variant not in self.seen]

    def records(self, final: Mapping[Variant, Measurement], date: str) -> list[Record]:
        """Return what the store keeps."""
        last = {variant: final.get(variant, measurement) for variant, measurement in self.seen.items()}
        return [
            Record(
                self.key,
                variant.to_text(),
                m.best_s if m.ok else None,
                m.error,
                Look.LAST if variant in final else Look.FIRST,
                date,
            )
            for variant, m in last.items()
        ]


def _difference(found: tuple[Array, ...] | Rejection, wanted: tuple[Array, ...] | Rejection) -> str | None:
    """Say how results differ, or why there are none."""
    if isinstance(wanted, Rejection):
        return wanted.reason
    if isinstance(found, Rejection):
        return found.reason
    for mine, right in zip(found, wanted, strict=True):
        scale = np.abs(right, where=np.isfinite(right), out=np.zeros_like(right)).max(initial=0.0)
        if not np.allclose(mine, right, rtol=0.0, atol=TOLERANCE * scale, equal_nan=True):
            return "computes something else than the unscheduled kernel"
    return None


def _nothing_measured(errors: Sequence[str | None]) -> Rejection | None:
    """Say why none of the variants that were tried can be used; `None` when none failed."""
    failed = [error for error in errors if error is not None]
    if not failed:
        return None
    ((reason, _),) = Counter(failed).most_common(1)
    return Rejection(f"0 of {len(failed)} variants could be used: {reason}")


def open_store(path: Path, device: Device) -> Store:
    """Open the store of tuned kernels for a device and for the schedules of this installation.

    Raises:
        ConfigError: the file cannot be used.
    """
    return Store(path, f"{device.name}, {device.threads} threads: {target_of(device)}", schedules_version())


@cache
def schedules_version() -> str:
    """Return the version of what turns a variant into code: TVM's, and a hash of the schedules' own source."""
    source = hashlib.sha256()
    for file in sorted(Path(tvm_passes.schedules.__file__).parent.glob("*.py")):
        source.update(file.read_bytes())
    return f"tvm {tvm.__version__} schedules {source.hexdigest()[:16]}"
