"""Text from a model, made fit for a one-line message: it may hold anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def quote(text: str, limit: int = 80) -> str:
    """Return `text` on one line, unprintable characters as spaces, cut after `limit` characters."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text[: 4 * limit]).split())
    return line if len(line) <= limit and len(text) <= 4 * limit else f"{line[:limit]}..."


def names(texts: Iterable[str], limit: int = 8) -> str:
    """Return the first `limit` of `texts`, quoted, and how many more there are."""
    every = list(texts)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(map(quote, every[:limit])) + more
