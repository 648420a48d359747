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

from gos_adapt.errors import DeviceError, DeviceUnreachableError, last_line

if TYPE_CHECKING:
    from collections.abc import Callable, Set

CONNECT_S = 15.0
"""For an agent to answer who connects: it does so at once, and a board that is asleep or gone does not at all."""
_opening = threading.Lock()
"""Held while a connection is made, for it is told from others by being new."""
_TAKEN = "already have key"
_FINAL = {
    "cannot find server that matches key": "the agent there has another key, or a tracker hands it out",
    "is not TVM RPC server": "what answers there is no server of TVM's RPC",
}
"""What TVM's client says, in our words; where nothing is said, time may help."""
_IDLE_S, _INTERVAL_S, _PROBES, _UNANSWERED_MS = 10, 5, 3, 25_000
"""When a peer is taken for gone that is silent, or does not acknowledge what was sent."""


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
            DeviceError: there will be none, however long one waits.
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
        DeviceUnreachableError: nobody answers, or it is taken.
        DeviceError: somebody else answers.
    """

    def __init__(self, address: str, port: int, key: str, where: str) -> None:
        with _opening:
            known = _sockets().keys()
            late = threading.Timer(CONNECT_S, lambda: _each(_sockets().keys() - known, _shut))
            late.daemon = True
            late.start()
            try:
                self.remote: Any = rpc.connect(address, port, key)
            except Exception as failure:  # TVM raises whatever the transport raises
                if said := next((ours for theirs, ours in _FINAL.items() if theirs in str(failure)), None):
                    raise DeviceError(f"{where} cannot be used: {said}") from failure
                said = "another client has it" if _TAKEN in str(failure) else last_line(failure)
                raise DeviceUnreachableError(f"{where} cannot be used: {said}") from failure
            finally:
                late.cancel()
            self._sockets = _sockets().keys() - known
        _each(self._sockets, _notice_silence)

    def cut(self) -> None:
        """Make whatever waits for the device fail now, and let others have it."""
        _each(self._sockets, _shut)


def _sockets() -> dict[str, int]:
    """The sockets of this process: identity -> file descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed since
            identity = os.readlink(f"/proc/self/fd/{name}")
            if identity.startswith("socket:"):
                found[identity] = int(name)
    return found


def _each(identities: Set[str], do: Callable[[socket.socket], None]) -> None:
    """Do something with sockets, which belong to TVM, where they are still open."""
    for identity, number in _sockets().items():
        if identity in identities:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as same:
                do(same)


def _shut(opened: socket.socket) -> None:
    opened.shutdown(socket.SHUT_RDWR)


def _notice_silence(opened: socket.socket) -> None:
    """Let the kernel fail a call whose peer is gone without a word, such as a board that was unplugged."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL_S)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNANSWERED_MS)
