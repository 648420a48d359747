"""Ctrl-C that is not lost: TVM turns a `KeyboardInterrupt` that reaches one of its passes into an error like any other.

Such an error would pass for the failure of a candidate, and be remembered as that. So the request is noted as well, and
`check` raises it again before anything is remembered.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_requested = False


@contextmanager
def noted() -> Iterator[None]:
    """Note Ctrl-C within the block, which is in the main thread, besides raising `KeyboardInterrupt`."""
    global _requested  # a signal is of the process

    def note(*_: object) -> None:
        global _requested
        _requested = True
        raise KeyboardInterrupt

    _requested = False
    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def check() -> None:
    """Raise `KeyboardInterrupt` if Ctrl-C was pressed since `noted` began."""
    if _requested:
        raise KeyboardInterrupt
