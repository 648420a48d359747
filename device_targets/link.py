"""Ways to a device: a link connects to the agent that serves it, whoever started that (`spawned_link`, `network_link`).

TVM's client waits for an answer as long as it takes. So whoever holds a connection can cut it, and a call that hangs
fails then like one whose device crashed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, Protocol

from tvm import rpc

from gos_adapt.errors import DeviceUnreachableError, last_line

if TYPE_CHECKING:
    from collections.abc import Set

CONNECT_S = 15.0
"""For an agent to answer who connects: it does so at once, and a board that is asleep or gone does not at all."""
_opening = threading.Lock()
"""Held while a connection is made, for it is told from others by being new."""
_SAYINGS = {
    "already have key": "another client has it",
    "cannot find server that matches key": "the agent there has another key",
    "is not TVM RPC server": "what answers there is no server of TVM's RPC",
}
"""What TVM's client says, in our words."""


class Link(Protocol):
    """A way to one device.

    Attributes:
        where: It leads, for people.
    """

    where: str

    def connect(self) -> Connection:
        """Begin a session.

        Raises:
            DeviceUnreachableError: there is none to be had now.
        """

    def said(self) -> str:
        """What the agent said at last, if that can be known."""

    def close(self) -> None:
        """End what was started for this link."""


class Connection:
    """A session of TVM's RPC.

    Attributes:
        remote: TVM's own object.

    Args:
        address: Of the agent.
        port: Of the agent.
        key: Of the agent.
        where: For people.

    Raises:
        DeviceUnreachableError: nobody answers, or somebody else, or it is taken.
    """

    def __init__(self, address: str, port: int, key: str, where: str) -> None:
        with _opening:
            known = _sockets().keys()
            late = threading.Timer(CONNECT_S, lambda: _shut(_sockets().keys() - known))
            late.daemon = True
            late.start()
            try:
                self.remote: Any = rpc.connect(address, port, key)
            except Exception as failure:  # TVM raises whatever the transport raises
                said = next((ours for theirs, ours in _SAYINGS.items() if theirs in str(failure)), last_line(failure))
                raise DeviceUnreachableError(f"{where} cannot be used: {said}") from failure
            finally:
                late.cancel()
            self._sockets = _sockets().keys() - known

    def cut(self) -> None:
        """Make whatever waits for the device fail now, and let others have it."""
        _shut(self._sockets)


def _sockets() -> dict[str, int]:
    """The sockets of this process: identity -> file descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed since
            identity = os.readlink(f"/proc/self/fd/{name}")
            if identity.startswith("socket:"):
                found[identity] = int(name)
    return found


def _shut(identities: Set[str]) -> None:
    """Shut sockets, which belong to TVM, where they are still open."""
    for identity, number in _sockets().items():
        if identity in identities:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as same:
                same.shutdown(socket.SHUT_RDWR)
