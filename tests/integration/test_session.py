from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
from compiling import expected, graph, random
from onnx import helper
from processes import gone
from tvm import rpc

from device_targets import host
from device_targets.session import Effort, Session, measure
from device_targets.spawned_link import SpawnedLink
from gos_adapt.errors import DeviceError, DeviceUnreachableError, ModelImportError
from gos_adapt.profiling.in_place import RUNS, time_in_place
from tvm_passes.build import build, build_model, cpu_of, prepare, prepare_functions
from tvm_passes.build_pool import BuildPool, Trial
from tvm_passes.schedules import variants

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvm_passes.build import Built

pytestmark = pytest.mark.rpc

GREETING_S = 3.0
ROOT = Path(__file__).parents[2]
EFFORT = Effort(rounds=2, samples=3)
MODEL = graph(
    [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
    ],
    (1, 8, 16, 16),
    {"w": random(8, 8, 3, 3)},
    {"y": 4},
)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session(host()) as opened:
        yield opened


def built(session: Session, folder: Path, *functions: str) -> Built:
    prepared = prepare_functions(dict.fromkeys(functions, MODEL), session.device, 1)
    return build(prepared, session.device, folder / "functions.so")


def link_of(session: Session) -> SpawnedLink:
    assert isinstance(session._link, SpawnedLink)
    return session._link


def server_of(session: Session) -> psutil.Process:
    agent = link_of(session)._agent
    assert agent is not None
    return psutil.Process(agent.pid)


def test_a_model_runs_on_the_host_as_on_any_device(session: Session, tmp_path: Path) -> None:
    library = session.load(build_model(MODEL, session.device, 1, tmp_path / "model.so").path)
    array = random(1, 8, 16, 16, seed=1)
    (got,), (wanted,) = library.run([array]), expected(MODEL, array)
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_functions_and_kernels_are_timed_interleaved(session: Session, tmp_path: Path) -> None:
    functions = built(session, tmp_path, "one", "two")
    loaded = session.load(functions.path)
    ((key, (func, constants)),) = prepare_functions({"one": MODEL}, session.device, 1).kernels.items()
    variant, *_ = variants(func, cpu_of(session.device))
    with BuildPool(session.device, tmp_path) as pool:
        (trials,) = pool.build({"kernel": Trial(key, func, constants, variant)})
    parts = session.load(trials.path)
    blocked = [random(*shape) for shape, _ in functions.parameters["one"]]
    assert [array.shape for array in blocked] == [(1, 1, 16, 16, 8)]
    measured = measure(
        session,
        {
            "one": lambda: loaded.function_evaluator("one", blocked),
            "two": lambda: loaded.function_evaluator("two", blocked),
            "kernel": lambda: parts.kernel_evaluator("kernel", trials.parameters["kernel"]),
        },
        EFFORT,
    )
    assert all(latency.ok and len(latency.samples_s) == EFFORT.rounds * EFFORT.samples for latency in measured.values())
    assert {latency.conditions.threads for latency in measured.values()} == {session.device.threads}


def test_what_cannot_be_prepared_fails_alone(session: Session, tmp_path: Path) -> None:
    loaded = session.load(built(session, tmp_path, "good").path)
    good = [random(1, 1, 16, 16, 8)]
    measured = measure(
        session,
        {
            "missing": lambda: loaded.function_evaluator("missing", good),
            "good": lambda: loaded.function_evaluator("good", good),
        },
        EFFORT,
    )
    assert measured["good"].ok
    assert "missing" in str(measured["missing"].error)


def test_a_model_without_kernels_is_refused_before_anything_runs(session: Session, tmp_path: Path) -> None:
    proto = graph([helper.make_node("Identity", ["x"], ["y"])], (1, 8, 4, 4), {}, {"y": 4})
    built = build(prepare(proto, session.device, 1), session.device, tmp_path / "model.so", timed_repeats=RUNS)
    with pytest.raises(ModelImportError, match="give a model that computes its outputs"):
        time_in_place(session, [(session.load(built.path), [random(1, 8, 4, 4)])])


def test_one_name_uploaded_twice_does_not_disturb_the_library_in_use(session: Session, tmp_path: Path) -> None:
    path = build_model(MODEL, session.device, 1, tmp_path / "same.so").path
    first, second = session.load(path), session.load(path)
    array = random(1, 8, 16, 16, seed=2)
    np.testing.assert_array_equal(first.run([array])[0], second.run([array])[0])


def test_the_server_listens_on_loopback_alone_and_knows_its_threads(session: Session) -> None:
    server = server_of(session)
    listening = [c.laddr.ip for c in server.net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]
    assert server.environ()["TVM_NUM_THREADS"] == str(session.device.threads)
    assert link_of(session)._key not in " ".join(server.cmdline())


def test_a_file_that_is_no_library_is_refused_and_the_session_goes_on(session: Session, tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(DeviceError, match=r"device host refused broken\.so: "):
        session.load(tmp_path / "broken.so")
    assert session.load(build_model(MODEL, session.device, 1, tmp_path / "model.so").path)


def test_a_session_that_dies_costs_the_measurement_and_nothing_else(tmp_path: Path) -> None:
    with Session(host()) as session:
        path = built(session, tmp_path, "one").path
        library = session.load(path)
        evaluate = library.function_evaluator("one", [random(1, 1, 16, 16, 8)])

        def dies() -> None:
            for child in server_of(session).children():
                child.kill()

        def killing(number: int, repeat: int) -> list[float]:
            dies()
            return list(evaluate(number, repeat))

        measured = measure(session, {"dead": lambda: killing, "next": lambda: evaluate}, EFFORT)
        assert not measured["dead"].ok
        again = session.load(path)
        assert measure(session, {"one": lambda: again.function_evaluator("one", [random(1, 1, 16, 16, 8)])}, EFFORT)[
            "one"
        ].ok


def test_a_dead_server_is_replaced(tmp_path: Path) -> None:
    with Session(host()) as session:
        before = server_of(session).pid
        os.kill(before, signal.SIGKILL)
        assert gone(before)
        assert session.load(build_model(MODEL, session.device, 1, tmp_path / "model.so").path)
        assert server_of(session).pid != before


def test_whatever_strangers_send_the_server_goes_on_and_the_session_gets_through(tmp_path: Path) -> None:
    magic = struct.pack("<i", rpc.base.RPC_MAGIC)
    greetings = {
        "nothing": b"",
        "no magic": b"GET / HTTP/1.1\r\n\r\n" * 4,
        "an empty key": magic + struct.pack("<i", 0),
        "no text": magic + struct.pack("<i", 2) + b"\xff\xfe",
        "an endless key": magic + struct.pack("<i", 2**31 - 1) + b"client:" * 9,
        "another key": magic + struct.pack("<i", 39) + b"client:" + b"0" * 32,
    }
    with Session(host()) as session:
        server = server_of(session)
        for child in server.children():
            child.kill()  # one session at a time: until it ends, nobody is heard
        for greeting in greetings.values():
            with socket.create_connection(("127.0.0.1", link_of(session)._port)) as stranger:
                stranger.sendall(greeting)
        with socket.create_connection(("127.0.0.1", link_of(session)._port)):  # says nothing, and stays
            assert session.load(build_model(MODEL, session.device, 1, tmp_path / "model.so").path)
        assert server_of(session) == server


def test_a_session_may_be_silent_for_longer_than_a_greeting() -> None:
    with Session(host()) as session:
        (child,) = server_of(session).children()
        time.sleep(1.5 * GREETING_S)
        assert session.alive()
        assert server_of(session).children() == [child]


def test_a_device_that_is_gone_says_how_to_continue(tmp_path: Path) -> None:
    with Session(host()) as session:
        library = session.load(build_model(MODEL, session.device, 1, tmp_path / "model.so").path)
        server = server_of(session)
        (child,) = server.children()
        server.kill()
        assert gone(child.pid)
        with pytest.raises(DeviceUnreachableError, match="the same command, without --fresh, continues"):
            library.run([random(1, 8, 16, 16)])


def test_the_server_ends_with_the_session() -> None:
    with Session(host()) as session:
        pid = server_of(session).pid
        folder = Path(link_of(session)._folder.name)
        assert folder.is_dir()
    assert gone(pid)
    assert not folder.exists()


def test_the_server_dies_when_the_run_is_killed() -> None:
    script = (
        "import sys, time\n"
        "from device_targets import host\n"
        "from device_targets.session import Session\n"
        "with Session(host()) as session:\n"
        "    print(session._link._agent.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT) as run:
        assert run.stdout is not None
        server = int(run.stdout.readline())
        assert psutil.pid_exists(server)
        run.kill()
        run.wait()
    assert gone(server)


def test_a_closed_session_says_so() -> None:
    session = Session(host())
    with pytest.raises(DeviceError, match="is closed; open it with"):
        session.ensure_alive()
