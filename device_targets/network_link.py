"""Links to boards that serve by themselves: at an address, or handed out by a tracker that a team shares."""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

from tvm.rpc.base import RPC_TRACKER_MAGIC, TrackerCode

from device_targets.link import CONNECT_S, Connection
from gos_adapt.errors import DeviceError, DeviceUnreachableError

FREE_S = 30.0
"""For a board to become free, before the caller is told that none is; it may ask again."""
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
    """

    def __init__(self, address: str, port: int, key: str) -> None:
        self.where = f"{key} of the tracker at {address}:{port}"
        self._tracker, self._key = (address, port), key

    def connect(self) -> Connection:
        """Begin a session with a board that is free, or becomes it in `FREE_S`."""
        try:
            with socket.create_connection(self._tracker, timeout=CONNECT_S) as tracker:
                address, port, match_key = self._board(tracker)
        except OSError as failure:
            raise DeviceUnreachableError(f"{self.where}: no tracker answers ({failure or 'in time'})") from failure
        except (ValueError, LookupError, TypeError, RecursionError) as failure:
            raise DeviceError(f"{self.where}: what answers there is no tracker of TVM's RPC") from failure
        return Connection(address, port, match_key, self.where)

    def said(self) -> str:
        """Nothing: its log stays on the board."""
        return ""

    def close(self) -> None:
        """Leave the board to others."""

    def _board(self, tracker: socket.socket) -> tuple[str, int, str]:
        """Address, port and key of a board, from somebody who may be no tracker at all."""
        magic = struct.pack("<i", RPC_TRACKER_MAGIC)
        tracker.sendall(magic)
        if _received(tracker, len(magic)) != magic:
            raise ValueError("another magic number")
        _status, summary = _ask(tracker, [TrackerCode.SUMMARY])
        if not any(row["key"] == f"server:{self._key}" for row in summary["server_info"]):
            raise DeviceUnreachableError(f"{self.where}: no such board is registered; start its agent")
        tracker.settimeout(FREE_S)
        try:
            status, *board = _ask(tracker, [TrackerCode.REQUEST, self._key, "", 1])
        except TimeoutError:
            raise DeviceUnreachableError(f"{self.where}: no board became free in {FREE_S:.0f} s") from None
        if status != TrackerCode.SUCCESS:
            raise DeviceUnreachableError(f"{self.where}: the tracker hands out none")
        ((address, port, match_key),) = board
        if not 0 < int(port) < 2**16:
            raise ValueError(f"port {port}")
        return str(address), int(port), str(match_key)


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
