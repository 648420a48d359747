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
