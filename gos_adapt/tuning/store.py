"""What was measured of each kernel under each variant, kept across models and runs.

One row is one trial: a kernel (by what it computes), a device, a version of the schedules, a variant. Another version
of the schedules or of TVM compiles other code under the same knobs, so its rows are never mixed with these.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Self

import sqlalchemy as sql

from gos_adapt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_TABLES = sql.MetaData()
_TRIALS = sql.Table(
    "variants",
    _TABLES,
    sql.Column("device", sql.String, primary_key=True),
    sql.Column("schedules", sql.String, primary_key=True),
    sql.Column("kernel", sql.String, primary_key=True),
    sql.Column("variant", sql.String, primary_key=True),
    sql.Column("latency_s", sql.Float),
    sql.Column("error", sql.String),
    sql.Column("look", sql.Integer, nullable=False),
    sql.Column("date", sql.String, nullable=False),
)


KEPT = 200_000
"""Trials that are kept, the newest: some fifty megabytes, of hundreds of models."""


class Look(IntEnum):
    """How a variant was timed: only latencies of one look at a kernel compare."""

    FIRST = 0
    """Shortly, among all variants."""
    LAST = 1
    """For longer, against the other best ones, all known to compute what they should."""
    IN_PLACE = 2
    """Inside a model, against those that were close then."""


@dataclass(frozen=True)
class Record:
    """One trial.

    Attributes:
        kernel: Key of the kernel (`tvm_passes.schedule_kernels.kernel_key`).
        variant: Its text form.
        latency_s: Best sample, measured; `None` where there is an error.
        error: Why nothing was measured.
        look: How it was timed.
        date: ISO 8601, UTC.
    """

    kernel: str
    variant: str
    latency_s: float | None
    error: str | None
    look: Look
    date: str


class Store:
    """Trials in a SQLite file, of one device and one version of the schedules; a context manager.

    Args:
        path: The file; made where there is none.
        device: Identity of the device: name, CPU, threads.
        schedules: Version of what turns variants into code.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(self, path: Path, device: str, schedules: str) -> None:
        self.path, self.device, self.schedules = path, device, schedules
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            url = sql.URL.create("sqlite", database=str(path))  # a path may hold what means something in a URL
            self._engine = sql.create_engine(url, connect_args={"timeout": 60})
            with self._engine.begin() as connection:
                connection.execute(sql.schema.CreateTable(_TRIALS, if_not_exists=True))
                connection.execute(_forget_the_oldest())
        except (OSError, sql.exc.SQLAlchemyError) as error:
            raise self._unusable(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()

    def put(self, records: Iterable[Record]) -> None:
        """Keep records; a trial measured again replaces the one before."""
        rows = [vars(record) | {"device": self.device, "schedules": self.schedules} for record in records]
        if not rows:
            return
        try:
            with self._engine.begin() as connection:
                connection.execute(_TRIALS.insert().prefix_with("OR REPLACE"), rows)
        except sql.exc.SQLAlchemyError as error:
            raise self._unusable(error) from error

    def best(self, kernel: str) -> Record | None:
        """Return the fastest variant of a tuned kernel; `None` for a kernel that is not."""
        found = self.finalists(kernel)
        return found[0] if found else None

    def finalists(self, kernel: str) -> list[Record]:
        """Return the variants of a tuned kernel that came through its closest look, the fastest first."""
        timed = (_TRIALS.c.kernel == kernel, _TRIALS.c.look >= Look.LAST, _TRIALS.c.latency_s.is_not(None))
        found = self._read(self._mine().where(*timed).order_by(_TRIALS.c.look.desc(), _TRIALS.c.latency_s))
        return [record for record in found if record.look == found[0].look]

    def trials(self, kernel: str) -> list[Record]:
        """Return every trial of a kernel."""
        return self._read(self._mine().where(_TRIALS.c.kernel == kernel))

    def _mine(self) -> sql.Select[tuple[object, ...]]:
        columns = [_TRIALS.c[name] for name in Record.__dataclass_fields__]
        return sql.select(*columns).where(_TRIALS.c.device == self.device, _TRIALS.c.schedules == self.schedules)

    def _read(self, query: sql.Select[tuple[object, ...]]) -> list[Record]:
        try:
            with self._engine.connect() as connection:
                rows = connection.execute(query).mappings()
                return [Record(**{**row, "look": Look(row["look"])}) for row in rows]
        except sql.exc.SQLAlchemyError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> ConfigError:
        cause = getattr(error, "orig", None) or error
        return ConfigError(
            f"the tuning store {self.path} cannot be used ({cause}); "
            "move it away, or set GOS_ADAPT_CACHE to another folder"
        )


def _forget_the_oldest() -> sql.Delete:
    """Forget what is older than the newest `KEPT` trials; what was tried at one time stays together."""
    oldest_kept = sql.select(_TRIALS.c.date).order_by(_TRIALS.c.date.desc()).limit(1).offset(KEPT - 1)
    return _TRIALS.delete().where(_TRIALS.c.date < oldest_kept.scalar_subquery())
