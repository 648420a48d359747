from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gos_adapt.cache_folder import cache_folder
from gos_adapt.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def test_the_override_is_the_folder_and_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOS_ADAPT_CACHE", str(tmp_path / "a" / "b"))
    assert cache_folder() == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(("base", "expected"), [("xdg", "xdg/gos-adapt"), ("", "home/.cache/gos-adapt")])
def test_without_it_the_folder_is_where_caches_belong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, expected: str
) -> None:
    monkeypatch.delenv("GOS_ADAPT_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / base) if base else "relative")
    assert cache_folder() == tmp_path / expected


def test_a_folder_that_cannot_be_made_is_one_line_that_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GOS_ADAPT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match=r"no cache folder: .*; set GOS_ADAPT_CACHE to a writable folder"):
        cache_folder()
