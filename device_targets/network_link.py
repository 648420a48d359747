"""Links to boards that serve by themselves: at an address, or handed out by a tracker that a team shares."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from typing import Any

from tvm.rpc.base import RPC_TRACKER_MAGIC, TrackerCode

from device_targets.link import CONNECT_S, Connection
from gos_adapt.errors import DeviceUnreachableError

MAX_BYTES = 2**20
"""Of a tracker's answer: it lists what thousands of boards would be."""


class DirectLink:
    """See `device_targets.link.Link`.

    Args:
        address: Name or number of the board.
        port: Where its agent listens.
        key: Of the agent.
    """

    def __init__(self, address: str, port: int, key: str) -> None:
        self.where = f"{key} at {address}:{port}"
        self._address, self._port, self._key = address, port, key

    def connect(self) -> Connection:
        """Begin a session with the board."""
        return Connection(self._address, self._port, self._key, self.where)

    def said(self) -> str:
        """Nothing: its log stays on the board."""
        return ""

    def close(self) -> None:
        """Leave the agent as it is."""


class TrackerLink:
    """See `device_targets.link.Link`.

    Args:
        address: Name or number of the machine that the tracker runs on.
        port: Where it listens.
        key: Of the boards wanted.
        patience_s: For a board to become free.
    """

    def __init__(self, address: str, port: int, key: str, patience_s: float) -> None:
        self.where = f"{key} of the tracker at {address}:{port}"
        self._tracker, self._key, self._patience_s = (address, port), key, patience_s

    def connect(self) -> Connection:
        """Wait for a board that is free, and begin a session with it."""
        with self._asked(self._patience_s) as tracker:
            if not any(row.get("key") == f"server:{self._key}" for row in self._servers(tracker)):
                raise DeviceUnreachableError(f"{self.where}: no such board is registered; start an agent there")
            status, *board = self._ask(tracker, [TrackerCode.REQUEST, self._key, "", 1])
        if status != TrackerCode.SUCCESS:
            raise DeviceUnreachableError(f"{self.where}: the tracker hands out none")
        address, port, match_key = board[0]
        return Connection(str(address), int(port), str(match_key), self.where)

    def said(self) -> str:
        """Nothing: its log stays on the board."""
        return ""

    def close(self) -> None:
        """Leave the board to others."""

    def _servers(self, tracker: socket.socket) -> list[dict[str, Any]]:
        _status, summary = self._ask(tracker, [TrackerCode.SUMMARY])
        return [row for row in summary["server_info"] if isinstance(row, dict)]

    @contextlib.contextmanager
    def _asked(self, patience_s: float) -> Any:
        """A conversation with the tracker, which may be anybody."""
        try:
            with socket.create_connection(self._tracker, timeout=CONNECT_S) as tracker:
                tracker.sendall(struct.pack("<i", RPC_TRACKER_MAGIC))
                if _received(tracker, 4) != struct.pack("<i", RPC_TRACKER_MAGIC):
                    raise DeviceUnreachableError(f"{self.where}: what answers there is no tracker of TVM's RPC")
                tracker.settimeout(patience_s)
                yield tracker
        except TimeoutError:
            raise DeviceUnreachableError(f"{self.where}: no board became free in time") from None
        except (OSError, ValueError, LookupError, TypeError) as failure:
            raise DeviceUnreachableError(f"{self.where}: no tracker answers ({failure})") from failure

    @staticmethod
    def _ask(tracker: socket.socket, question: list[Any]) -> list[Any]:
        text = json.dumps(question).encode()
        tracker.sendall(struct.pack("<i", len(text)) + text)
        (size,) = struct.unpack("<i", _received(tracker, 4))
        if not 0 <= size <= MAX_BYTES:
            raise ValueError(f"an answer of {size} bytes")
        answer = json.loads(_received(tracker, size))
        if not isinstance(answer, list):
            raise ValueError("an answer that is no list")
        return answer


def _received(connection: socket.socket, size: int) -> bytes:
    """Exactly so many bytes, within the connection's timeout for all of them."""
    end = time.monotonic() + (connection.gettimeout() or CONNECT_S)
    got = b""
    while len(got) < size:
        if time.monotonic() > end:
            raise TimeoutError
        part = connection.recv(size - len(got))
        if not part:
            raise OSError("it hung up")
        got += part
    return got
