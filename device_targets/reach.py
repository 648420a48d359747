"""Where a device is that is not this machine: data only."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gos_adapt.errors import ConfigError

_PLACE = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):(\d{1,5})")
_KEY = re.compile(r"[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True)
class Reach:
    """How a board is reached: at an address, or through a tracker.

    Attributes:
        address: HOST:PORT of its agent.
        tracker: HOST:PORT of the tracker that hands it out.
        key: What the agent is called; `None` for the device's name.
        patience_s: Seconds to wait for a board that is gone or taken.

    Raises:
        ConfigError: a value makes no sense, or both ways are named.
    """

    address: str | None = None
    tracker: str | None = None
    key: str | None = None
    patience_s: float = 600.0

    def __post_init__(self) -> None:
        if self.address is not None and self.tracker is not None:
            raise ConfigError("give the address of a board or of a tracker, not both")
        if self.place is not None:
            place_of(self.place)
        if self.key is not None and not _KEY.fullmatch(self.key):
            raise ConfigError(f"a key has letters, digits and . _ -, at most 100 of them, got {self.key!r}")

    @property
    def place(self) -> str | None:
        """The one of both that is named."""
        return self.address or self.tracker


HERE = Reach()
"""Of this machine, and of a board that nothing can be measured on."""


def place_of(text: str) -> tuple[str, int]:
    """Split HOST:PORT; an IPv6 address is in brackets.

    Raises:
        ConfigError: it is something else.
    """
    match = _PLACE.fullmatch(text)
    if match is None or not 0 < int(match[2]) < 2**16:
        raise ConfigError(f"an address looks like 192.168.0.7:9090 or board.local:9090, got {text!r}")
    return match[1].strip("[]"), int(match[2])
