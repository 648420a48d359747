"""What a person sees while a run works: stages, the best result so far, and the time left.

The pipeline knows only the `Progress` protocol. Everything said also goes to a log file once there is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from gos_adapt.run_folder import cannot_write

if TYPE_CHECKING:
    from rich.console import Console

Verbosity = Literal["quiet", "normal", "verbose"]
Advance = Callable[[], None]


class Progress(Protocol):
    """Where a run says what it does. Texts are plain: names from a model are shown as they are, never as markup."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Enter stage `name` of `total` steps (`None`: not known); call the result once for each step done."""

    def note(self, text: str) -> None:
        """Say what everyone should know."""

    def detail(self, text: str) -> None:
        """Say what those who look closely should know."""

    def best(self, text: str) -> None:
        """Show the best result so far."""

    def log_to(self, path: Path) -> AbstractContextManager[None]:
        """Write everything said within the block to the end of the file `path`, with UTC times."""

    def budget(self, left_s: Callable[[], float]) -> None:
        """Show how much of the time budget is left."""


class Silent:
    """Progress that nobody watches: the default of the Python interface. It still writes a log."""

    def __init__(self) -> None:
        self._log: FileIO | None = None

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """Log the stage and how long it took."""
        self.detail(f"{name}: begins" + ("" if total is None else f", {total} steps"))
        start = time.monotonic()
        yield lambda: None
        self.detail(f"{name}: ends after {time.monotonic() - start:.1f} s")

    def note(self, text: str) -> None:
        """Log it."""
        self._write(text)

    def detail(self, text: str) -> None:
        """Log it."""
        self._write(text)

    def best(self, text: str) -> None:
        """Log it."""
        self._write(f"best so far: {text}")

    def budget(self, left_s: Callable[[], float]) -> None:
        """Nothing to show it on."""

    @contextmanager
    def log_to(self, path: Path) -> Iterator[None]:
        """Append to `path`."""
        try:
            file = FileIO(path, "a")
        except OSError as error:
            raise cannot_write(path, error) from error
        with file:
            self._log = file
            try:
                yield
            finally:
                self._log = None

    def _write(self, text: str) -> None:
        if self._log is None:
            return
        date = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        try:
            self._log.write(f"{date} {' '.join(text.splitlines())}\n".encode(errors="backslashreplace"))
        except OSError as error:
            raise cannot_write(Path(str(self._log.name)), error) from error


class Terminal(Silent):
    """Progress on a console: live bars on a terminal, one line a stage in a file or pipe, nothing when quiet."""

    def __init__(self, console: Console, verbosity: Verbosity = "normal") -> None:
        super().__init__()
        self._console = console
        self._verbosity = verbosity
        self._best = ""
        self._left_s: Callable[[], float] | None = None

    def note(self, text: str) -> None:
        """Print and log it."""
        super().note(text)
        if self._verbosity != "quiet":
            self._print(text)

    def detail(self, text: str) -> None:
        """Log it; print it when verbose."""
        super().detail(text)
        if self._verbosity == "verbose":
            self._print(text)

    def best(self, text: str) -> None:
        """Show it beside the bar from now on."""
        super().best(text)
        self._best = text
        if self._verbosity != "quiet" and not self._console.is_terminal:
            self._print(f"best so far: {text}")

    def budget(self, left_s: Callable[[], float]) -> None:
        """Show it beside the bar from now on."""
        self._left_s = left_s

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """Show a bar; on something that is no terminal, a line when the stage begins."""
        with super().stage(name, total), self._bar(name, total) as advance:
            yield advance

    def _bar(self, name: str, total: int | None) -> AbstractContextManager[Advance]:
        if self._verbosity != "quiet" and self._console.is_terminal:
            return self._live_bar(name, total)
        if self._verbosity == "normal":  # verbose has said it already
            self._print(f"{name} ..." if total is None else f"{name}, {total} steps ...")
        return nullcontext(lambda: None)

    @contextmanager
    def _live_bar(self, name: str, total: int | None) -> Iterator[Advance]:
        from rich import progress

        columns = (
            progress.TextColumn("{task.description:<12}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[status]}", markup=False),
        )
        with progress.Progress(*columns, console=self._console) as bars:
            bar = bars.add_task(name, total=total, status=self._status())

            def advance() -> None:
                bars.update(bar, advance=1, status=self._status())

            yield advance

    def _status(self) -> str:
        left = "" if self._left_s is None else f"{max(0.0, self._left_s()) / 60:.1f} min left  "
        return left + (self._best and f"best: {self._best}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)
