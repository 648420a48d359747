"""Standing here, this file puts `tests/` on the import path, so that tests of any folder share its builders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is learned of this machine for this run alone; processes that tests start inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOS_ADAPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class Clock:
    """Stands in for `time.monotonic`: time passes when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of journals."""
    clock = Clock()
    monkeypatch.setattr("gos_adapt.run_folder.time.monotonic", clock)
    return clock
