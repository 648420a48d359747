"""Agents and trackers of this machine, for tests that play a board."""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tvm.rpc.tracker import Tracker

from device_targets.board.build import installed_agent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HANG = "__attribute__((constructor)) static void hang(void) { for (;;) ; }\n"


@contextmanager
def agent(key: str, work: Path, *options: str) -> Iterator[int]:
    """An agent; its port."""
    command = [str(installed_agent()), "--key", key, "--work", str(work), "--with-parent", str(os.getpid()), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


@contextmanager
def running_tracker() -> Iterator[Tracker]:
    """TVM's tracker, at a port of its own."""
    tracker = Tracker("127.0.0.1", port=19190, port_end=19290, silent=True)
    try:
        yield tracker
    finally:
        tracker.terminate()


def free_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def library_of(source: str, folder: Path, name: str) -> Path:
    """Compile C into ``name.so``, which does when it is loaded what its constructor says."""
    (folder / f"{name}.c").write_text(source)
    library = folder / f"{name}.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(folder / f"{name}.c")], check=True)
    return library
