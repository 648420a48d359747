"""The board's agent, built for this machine: TVM's own client and tracker talk to it."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from platform import machine
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import tvm
from agents import HANG, free_port, library_of, running_tracker
from compiling import graph, random
from onnx import helper
from processes import gone
from tvm import relax, rpc
from tvm.rpc import base
from tvm.rpc.tracker import Tracker

from device_targets import host
from device_targets.board.build import build_agent, pack_agent, runtime_for
from tvm_passes.build import build_model

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "box"
MODEL = graph(
    [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])],
    (1, 8),
    {"w": random(8, 4)},
    {"y": 2},
)


@dataclass
class Agent:
    """A running agent: its port, its process, and the folder that sessions work in."""

    port: int
    process: subprocess.Popen[str]
    work: Path

    @property
    def sessions(self) -> list[str]:
        return sorted(name for name in os.listdir(self.work) if name.startswith("session-"))

    def connect(self, key: str = KEY, timeout_s: int = 0) -> Any:
        return rpc.connect("127.0.0.1", self.port, key, session_timeout=timeout_s)

    def cleared(self) -> bool:
        """Whether it clears up after its sessions within seconds."""
        return _within(5, lambda: not self.sessions)


def answers(remote: Any) -> bool:
    """Whether a session works."""
    remote.get_function("adapt.start_threads")(1)
    return True


def _within(seconds: float, holds: Any) -> bool:
    end = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(0.02)
    return bool(held)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent, built once."""
    folder = tmp_path_factory.mktemp("agent")
    (folder / "lib").mkdir()
    runtime_for(machine(), folder / "lib")
    build_agent(machine(), folder / "lib", folder / "agent")
    return folder / "agent"


@contextmanager
def running(program: Path, work: Path, *options: str) -> Iterator[Agent]:
    command = [str(program), "--key", KEY, "--work", str(work), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Agent(int(process.stdout.readline()), process, work)
        finally:
            process.terminate()
    assert process.returncode == 0


@pytest.fixture
def agent(program: Path, tmp_path: Path) -> Iterator[Agent]:
    with running(program, tmp_path / "work") as agent:
        yield agent


def test_a_compiled_model_runs_there_and_is_timed(agent: Agent, tmp_path: Path) -> None:
    library = build_model(MODEL, host(), 1, tmp_path / "model.so").path
    remote = agent.connect()
    remote.get_function("adapt.start_threads")(host().threads)
    remote.upload(bytearray(library.read_bytes()), "model.so")
    vm = relax.VirtualMachine(remote.load_module("model.so"), remote.cpu())
    x = random(1, 8)
    vm.set_input("main", tvm.runtime.tensor(x, remote.cpu()))
    vm.invoke_stateful("main")
    weights = MODEL.graph.initializer[0]
    expected = np.maximum(x @ np.frombuffer(weights.raw_data, np.float32).reshape(8, 4), 0)
    np.testing.assert_allclose(vm.get_outputs("main").numpy(), expected, rtol=1e-5)
    assert min(vm.time_evaluator("invoke_stateful", remote.cpu(), number=3, repeat=2)("main").results) > 0


def test_a_session_has_a_folder_of_its_own_that_no_name_leaves(agent: Agent) -> None:
    remote = agent.connect()
    (session,) = agent.sessions
    remote.upload(bytearray(b"something"), "file")
    assert bytes(remote.download("file")) == b"something"
    assert (agent.work / session / "file").read_bytes() == b"something"
    for name in ("../file", "/tmp/file", "a/b", ".", "..", "x" * 300):
        with pytest.raises(Exception, match="plain name"):
            remote.upload(bytearray(b"evil"), name)
    del remote
    assert agent.cleared()


def test_who_comes_second_is_told_that_the_board_is_taken(agent: Agent) -> None:
    first = agent.connect()
    with pytest.raises(Exception, match="already have key"):
        agent.connect()
    assert answers(first)
    del first
    assert agent.cleared()
    assert answers(agent.connect())


def test_another_key_is_sent_away(agent: Agent) -> None:
    for key in ("other", "", KEY[:-1], KEY + "x"):
        with pytest.raises(Exception, match="cannot find server that matches"):
            agent.connect(key)


CRASH = "#include <stdlib.h>\n__attribute__((constructor)) static void crash(void) { abort(); }\n"


def test_code_that_crashes_takes_only_its_session_with_it(agent: Agent, tmp_path: Path) -> None:
    library = library_of(CRASH, tmp_path, "crash")
    remote = agent.connect()
    remote.upload(bytearray(library.read_bytes()), "crash.so")
    with pytest.raises(Exception, match=r"."):
        remote.load_module("crash.so")
    assert agent.cleared()
    assert answers(agent.connect())


def test_a_kernel_without_end_ends_with_its_client(agent: Agent, tmp_path: Path) -> None:
    library = library_of(HANG, tmp_path, "hang")
    client = (
        "import sys; from tvm import rpc; remote = rpc.connect('127.0.0.1', int(sys.argv[1]), sys.argv[2]);"
        "remote.upload(bytearray(open(sys.argv[3], 'rb').read()), 'hang.so'); print('sent', flush=True);"
        "remote.load_module('hang.so')"
    )
    command = [sys.executable, "-c", client, str(agent.port), KEY, str(library)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as hanging:
        assert hanging.stdout is not None
        assert hanging.stdout.readline() == "sent\n"
        time.sleep(0.2)
        hanging.kill()
    assert agent.cleared()
    assert answers(agent.connect())


GREETING = struct.pack("<i", base.RPC_MAGIC)
STRANGE = {
    "nothing": b"",
    "another protocol": b"GET / HTTP/1.1\r\n\r\n",
    "a greeting without end": GREETING + struct.pack("<i", 1000) + b"client:",
    "a long greeting": GREETING + struct.pack("<i", 2**31 - 1) + b"x" * 2000,
    "a negative length": GREETING + struct.pack("<i", -1),
    "no text": GREETING + struct.pack("<i", 4) + b"\xff\0\xff\0",
    "an empty greeting": GREETING + struct.pack("<i", 0),
}


@pytest.mark.parametrize("said", STRANGE.values(), ids=STRANGE)
def test_who_does_not_greet_is_shut_out_in_seconds_and_keeps_nobody_waiting(agent: Agent, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", agent.port), timeout=10) as stranger:
        stranger.sendall(said)
        assert answers(agent.connect())
        try:
            answer = stranger.recv(4)
        except ConnectionResetError:  # there was more to read than a greeting
            answer = b""
        assert answer in (b"", struct.pack("<i", base.RPC_CODE_MISMATCH))
    assert agent.cleared()


def test_many_who_do_not_greet_are_turned_away(agent: Agent) -> None:
    strangers = [socket.create_connection(("127.0.0.1", agent.port), timeout=10) for _ in range(40)]
    served = psutil.Process(agent.process.pid).children
    assert _within(2, lambda: len(served()) == 8)
    assert not _within(0.5, lambda: len(served()) > 8)
    for stranger in strangers:
        stranger.close()
    assert _within(10, lambda: not psutil.Process(agent.process.pid).children())
    assert answers(agent.connect())


def test_a_session_ends_when_its_time_is_over(program: Path, tmp_path: Path) -> None:
    with running(program, tmp_path / "work", "--session-timeout", "1") as agent:
        remote = agent.connect(timeout_s=1000)
        assert agent.cleared()
        with pytest.raises(Exception, match=r"."):
            answers(remote)


def test_a_client_may_want_less_time_than_it_could_have(agent: Agent) -> None:
    remote = agent.connect(timeout_s=1)
    assert agent.cleared()
    del remote


def test_the_end_of_the_agent_is_the_end_of_its_sessions(program: Path, tmp_path: Path) -> None:
    with running(program, tmp_path / "work") as agent:
        remote = agent.connect()
        (child,) = psutil.Process(agent.process.pid).children()
    assert gone(child.pid)
    del remote


def test_only_this_machine_is_served_unless_another_address_is_named(program: Path, tmp_path: Path) -> None:
    told: dict[str, tuple[str, ...]] = {"127.0.0.1": (), "0.0.0.0": ("--listen", "0.0.0.0:0")}
    if Path("/proc/net/if_inet6").exists():
        told["::1"] = ("--listen", "[::1]:0")
    for address, options in told.items():
        with running(program, tmp_path / "work", *options) as agent:
            (listening,) = [c for c in psutil.Process(agent.process.pid).net_connections() if c.status == "LISTEN"]
            assert listening.laddr.ip == address


def test_a_folder_has_one_agent_which_clears_what_was_left(program: Path, tmp_path: Path) -> None:
    (tmp_path / "session-1").mkdir()
    (tmp_path / "session-1" / "file").touch()
    with running(program, tmp_path) as agent:
        assert agent.sessions == []
        command = [str(program), "--key", KEY, "--work", str(tmp_path)]
        second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        assert second.returncode == 1
        assert "another agent works in" in second.stderr
        assert answers(agent.connect())


def test_only_folders_of_sessions_are_cleared(program: Path, tmp_path: Path) -> None:
    for other in ("session-1-of-mine", "session-notes", "session-"):
        (tmp_path / other).mkdir()
    (tmp_path / "session-17").touch()
    before = set(tmp_path.iterdir())
    with running(program, tmp_path):
        assert before <= set(tmp_path.iterdir())


def test_an_agent_ends_with_its_parent(program: Path, tmp_path: Path) -> None:
    script = (
        "import os, subprocess, sys, time\n"
        "agent = subprocess.Popen([*sys.argv[1:], '--with-parent', str(os.getpid())], stdout=subprocess.PIPE)\n"
        "agent.stdout.readline()\n"
        "print(agent.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(program), "--key", KEY, "--work", str(tmp_path / "work")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    assert gone(pid)
    late = [str(program), "--key", KEY, "--work", str(tmp_path / "work"), "--with-parent", "1"]
    assert subprocess.run(late, capture_output=True, check=False, timeout=10).returncode == 1


def test_an_archive_serves_where_it_is_unpacked(tmp_path: Path) -> None:
    pack_agent(host(), tmp_path / "agent.tar.gz")
    with tarfile.open(tmp_path / "agent.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    run = tmp_path / "adapt-agent-host" / "run.sh"
    variables: dict[str, str]
    for key, variables in (("host", {}), ("secret", {"ADAPT_AGENT_KEY": "secret"})):
        with subprocess.Popen([str(run)], stdout=subprocess.PIPE, text=True, env=os.environ | variables) as process:
            assert process.stdout is not None
            try:
                assert answers(rpc.connect("127.0.0.1", int(process.stdout.readline()), key))
                maps = Path(f"/proc/{process.pid}/maps").read_text()
            finally:
                process.terminate()
        assert {Path(line.split()[-1]).parent for line in maps.splitlines() if "libtvm" in line} == {run.parent / "lib"}


def test_options_are_checked(program: Path) -> None:
    for options, message in (
        ((), "--key"),
        (("--key", "a b"), "--key"),
        (("--key", 'a"'), "--key"),
        (("--key", "a", "--listen", "9090"), "--listen"),
        (("--key", "a", "--tracker", ":9190"), "--tracker"),
        (("--key", "a", "--session-timeout", "soon"), "--session-timeout"),
        (("--key", "a", "--session-timeout", "4294967297"), "--session-timeout"),
        (("--key", "a", "--with-parent", "me"), "--with-parent"),
        (("--key", "a", "--tracker", "192.168.0.7:9190"), "--listen"),
        (("--key", "a", "--what"), "what"),
        (("--key", "a", "more"), "options only"),
    ):
        run = subprocess.run([str(program), *options], capture_output=True, text=True, check=False, timeout=10)
        assert (run.returncode, run.stdout) == (2, "")
        assert message in run.stderr
        assert "usage:" in run.stderr
    run = subprocess.run([str(program), "--key", "a", "--listen", "x:1"], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "--listen x:1" in run.stderr


# With a tracker


@pytest.fixture
def tracker() -> Iterator[Tracker]:
    with running_tracker() as tracker:
        yield tracker


def test_boards_of_one_key_are_handed_out_and_come_back(program: Path, tmp_path: Path, tracker: Tracker) -> None:
    options = ("--tracker", f"127.0.0.1:{tracker.port}")
    with running(program, tmp_path / "1", *options), running(program, tmp_path / "2", *options):
        client = rpc.connect_tracker("127.0.0.1", tracker.port)
        for _ in range(3):
            remotes = [client.request(KEY, session_timeout=60) for _ in range(2)]
            assert all(map(answers, remotes))
            assert client.summary()["queue_info"][KEY]["free"] == 0
            del remotes
            assert _within(10, lambda: client.summary()["queue_info"][KEY]["free"] == 2)


def test_a_board_whose_client_never_came_is_handed_out_again(program: Path, tmp_path: Path, tracker: Tracker) -> None:
    with running(program, tmp_path / "work", "--tracker", f"127.0.0.1:{tracker.port}"):
        client = rpc.connect_tracker("127.0.0.1", tracker.port)
        _within(10, lambda: client.summary()["queue_info"].get(KEY, {}).get("free") == 1)
        taken = socket.create_connection(("127.0.0.1", tracker.port))
        taken.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
        base.recvall(taken, 4)
        base.sendjson(taken, [base.TrackerCode.REQUEST, KEY, "", 1])
        assert base.recvjson(taken)[0] == base.TrackerCode.SUCCESS
        assert client.summary()["queue_info"][KEY]["free"] == 0
        assert _within(20, lambda: client.summary()["queue_info"][KEY]["free"] == 1)
        assert answers(client.request(KEY))
        taken.close()


def test_an_agent_waits_for_its_tracker_and_finds_it_again(program: Path, tmp_path: Path) -> None:
    port = free_port()
    with running(program, tmp_path / "work", "--tracker", f"127.0.0.1:{port}") as agent:
        for _ in range(2):
            tracker = Tracker("127.0.0.1", port=port, port_end=port + 1, silent=True, reuse_addr=True)
            client = rpc.connect_tracker("127.0.0.1", port)
            assert _within(20, lambda client=client: client.summary()["queue_info"].get(KEY, {}).get("free") == 1)
            assert answers(client.request(KEY))
            tracker.terminate()
            del client
        assert agent.process.poll() is None


def test_a_tracker_that_answers_nonsense_is_left(program: Path, tmp_path: Path) -> None:
    with socket.socket() as nonsense:
        nonsense.bind(("127.0.0.1", 0))
        nonsense.listen()
        address = f"127.0.0.1:{nonsense.getsockname()[1]}"
        with running(program, tmp_path / "work", "--tracker", address) as agent:
            first, _ = nonsense.accept()
            first.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            second, _ = nonsense.accept()  # it tries again
            second.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC) + struct.pack("<i", 2**30))
            third, _ = nonsense.accept()
            for connection in (first, second, third):
                connection.close()
            assert answers(agent.connect())
