"""Links to agents on this machine: at an address, and through TVM's own tracker; and to what is none."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import numpy as np
import pytest
from agents import HANG, agent, free_port, library_of, running_tracker
from compiling import expected, graph, random
from onnx import helper
from tvm import rpc
from tvm.rpc import base

from device_targets import host, link, network_link
from device_targets.network_link import DirectLink, TrackerLink
from device_targets.session import Session
from gos_adapt.errors import DeviceError, DeviceUnreachableError
from tvm_passes.build import build_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tvm.rpc.tracker import Tracker

    from device_targets.link import Link

KEY = "box"
MODEL = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], (1, 8), {"w": random(8, 4)}, {"y": 2})


@pytest.fixture
def tracker() -> Iterator[Tracker]:
    with running_tracker() as tracker:
        yield tracker


def registered(tracker: Tracker) -> None:
    """Wait for a board."""
    client = rpc.connect_tracker("127.0.0.1", tracker.port)
    end = time.monotonic() + 30
    while not client.summary()["queue_info"].get(KEY, {}).get("free"):
        assert time.monotonic() < end
        time.sleep(0.05)


def runs(way: Link, folder: Path) -> bool:
    """Whether a model computes there what it should; the client before may just be leaving."""
    with Session(host(), way, patience_s=30) as session:
        library = session.load(build_model(MODEL, host(), 1, folder / "model.so").path)
        x = random(1, 8)
        (got,), (wanted,) = library.run([x]), expected(MODEL, x)
        return np.allclose(got, wanted, rtol=1e-5)


def test_a_board_at_an_address(tmp_path: Path) -> None:
    with agent(KEY, tmp_path / "work") as port:
        assert runs(DirectLink("127.0.0.1", port, KEY), tmp_path)
        assert runs(DirectLink("localhost", port, KEY), tmp_path)


def test_a_board_from_a_tracker(tmp_path: Path, tracker: Tracker) -> None:
    with agent(KEY, tmp_path / "work", "--tracker", f"127.0.0.1:{tracker.port}"):
        way = TrackerLink("127.0.0.1", tracker.port, KEY)
        registered(tracker)
        assert runs(way, tmp_path)
        assert runs(way, tmp_path)  # it waits until the board is free again


def test_a_tracker_without_such_a_board(tmp_path: Path, tracker: Tracker) -> None:
    with agent(KEY, tmp_path / "work", "--tracker", f"127.0.0.1:{tracker.port}"):
        registered(tracker)
        with pytest.raises(DeviceUnreachableError, match=r"^other of the tracker .*: no such board is registered"):
            TrackerLink("127.0.0.1", tracker.port, "other").connect()


def test_a_board_of_a_tracker_that_does_not_become_free(
    tmp_path: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_link, "FREE_S", 1.0)
    with agent(KEY, tmp_path / "work", "--tracker", f"127.0.0.1:{tracker.port}"):
        registered(tracker)
        first = TrackerLink("127.0.0.1", tracker.port, KEY).connect()
        with pytest.raises(DeviceUnreachableError, match="no board became free in 1 s"):
            TrackerLink("127.0.0.1", tracker.port, KEY).connect()
        assert first.remote.get_function("runtime.GetDeviceAttr")


def test_a_board_that_is_taken_and_one_with_another_key(tmp_path: Path) -> None:
    with agent(KEY, tmp_path / "work") as port:
        first = DirectLink("127.0.0.1", port, KEY).connect()
        with pytest.raises(DeviceUnreachableError, match=f"box at 127.0.0.1:{port} cannot be used: another client has"):
            DirectLink("127.0.0.1", port, KEY).connect()
        with pytest.raises(DeviceError, match="cannot be used: the agent there has another key"):
            DirectLink("127.0.0.1", port, "other").connect()
        assert first.remote.get_function("runtime.GetDeviceAttr")


def test_a_call_that_hangs_fails_when_its_connection_is_cut(tmp_path: Path) -> None:
    library = library_of(HANG, tmp_path, "hang")
    with agent(KEY, tmp_path / "work") as port:
        way = DirectLink("127.0.0.1", port, KEY)
        connection = way.connect()
        connection.remote.upload(bytearray(library.read_bytes()), "hang.so")
        timer = threading.Timer(0.5, connection.cut)
        timer.start()
        with pytest.raises(Exception, match=r"."):
            connection.remote.load_module("hang.so")
        with Session(host(), way, patience_s=20):
            pass


def test_a_board_that_is_gone_for_a_while_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    way = DirectLink("127.0.0.1", port, KEY)
    waited: list[str] = []
    ready = threading.Event()

    def comes_later() -> None:
        time.sleep(1.5)
        with agent(KEY, tmp_path / "work", "--listen", f"127.0.0.1:{port}"):
            ready.wait(30)

    board = threading.Thread(target=comes_later)
    board.start()
    with Session(host(), way, patience_s=30, waits=waited.append) as session:
        assert session.alive()
    ready.set()
    board.join()
    assert len(waited) >= 1
    with pytest.raises(DeviceUnreachableError, match="the same command, without --fresh, continues"):
        Session(host(), way).__enter__()


# Peers that are something else


def answering(answer: bytes) -> Callable[[socket.socket], None]:
    def peer(listener: socket.socket) -> None:
        with suppress(OSError):  # the test is over
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.sendall(answer)
                    connection.recv(1000)

    return peer


def silent(listener: socket.socket) -> None:
    with ExitStack() as kept, suppress(OSError):
        while True:
            kept.enter_context(listener.accept()[0])


@contextmanager
def stranger(peer: Callable[[socket.socket], None]) -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        answers = threading.Thread(target=peer, args=(listener,))
        answers.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        answers.join()


NUMBER = struct.Struct("<i")
SUMMARY = b'[0, {"server_info": [{"key": "server:box"}]}]'


def tracking(*answers: bytes) -> Callable[[socket.socket], None]:
    """A tracker that answers so, whatever it is asked."""
    said = [NUMBER.pack(base.RPC_TRACKER_MAGIC), *(NUMBER.pack(len(answer)) + answer for answer in answers)]

    def peer(listener: socket.socket) -> None:
        with suppress(OSError):  # the test is over
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    for one in said:
                        connection.recv(1000)
                        connection.sendall(one)
                    connection.recv(1000)
                    connection.recv(1000)

    return peer


PEERS = {
    "one that never answers": silent,
    "one that hangs up": answering(b""),
    "a web server": answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "one that promises a long key": answering(NUMBER.pack(base.RPC_MAGIC) + NUMBER.pack(2**31 - 1)),
    "a tracker": answering(NUMBER.pack(base.RPC_TRACKER_MAGIC)),
    "a tracker with a long answer": answering(NUMBER.pack(base.RPC_TRACKER_MAGIC) + NUMBER.pack(2**31 - 1)),
    "a tracker that speaks no JSON": answering(NUMBER.pack(base.RPC_TRACKER_MAGIC) + NUMBER.pack(3) + b"}{]"),
    "a tracker of another mind": tracking(b"[17]"),
    "a tracker that nests": tracking(b"[" * 100_000),
    "a tracker that hands out nothing": tracking(SUMMARY, b"[-1]"),
    "a tracker that hands out a word": tracking(SUMMARY, b'[0, "board"]'),
    "a tracker that hands out no port": tracking(SUMMARY, b'[0, ["127.0.0.1", 99999999999, "key"]]'),
    "a tracker that never hands out": tracking(SUMMARY),
}


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_whoever_answers_in_the_place_of_a_board_is_refused_in_time(
    peer: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "CONNECT_S", 1.0)
    monkeypatch.setattr(network_link, "CONNECT_S", 1.0)
    monkeypatch.setattr(network_link, "FREE_S", 1.0)
    with stranger(peer) as port:
        for way in (DirectLink("127.0.0.1", port, KEY), TrackerLink("127.0.0.1", port, KEY)):
            start = time.monotonic()
            with pytest.raises((DeviceError, DeviceUnreachableError), match=rf"^box .*127.0.0.1:{port}"):
                way.connect()
            assert time.monotonic() - start < 10


def test_nobody_there() -> None:
    port = free_port()
    for way in (DirectLink("127.0.0.1", port, KEY), TrackerLink("127.0.0.1", port, KEY)):
        with pytest.raises(DeviceUnreachableError, match=rf"^box .*127.0.0.1:{port}"):
            way.connect()
