"""A link to an agent that this process starts and ends: the host's own, or one of an emulated board.

Everybody on this machine can connect to it, so it has a key that nobody else knows; it stands in the environment of the
agent's process, which only its user can read, and not on a command line.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from device_targets.board.build import installed_agent
from device_targets.link import Connection
from gos_adapt.errors import DeviceUnreachableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from device_targets.device import Device

_START_S = 120.0
"""For an agent to say its port: an emulated one on a loaded machine takes seconds."""


def link_to_this_machine(device: Device) -> SpawnedLink:
    """Return a link to an agent on this machine, with the device's threads."""
    return SpawnedLink(device.name, [str(installed_agent())], {"TVM_NUM_THREADS": str(device.threads)})


class SpawnedLink:
    """See `device_targets.link.Link`.

    Args:
        where: For people.
        command: Starts the agent; its options are added.
        variables: Added to the agent's environment.
    """

    def __init__(self, where: str, command: Sequence[str], variables: Mapping[str, str]) -> None:
        self.where = where
        self._command, self._variables = list(command), dict(variables)
        self._key = secrets.token_hex(16)
        self._folder = tempfile.TemporaryDirectory(prefix="adapt-agent-", ignore_cleanup_errors=True)
        self._agent: subprocess.Popen[str] | None = None
        self._port = self._started = 0

    def connect(self) -> Connection:
        """Begin a session with the agent, which is started if it does not run, and again if it does not answer."""
        if self._agent is not None and self._agent.poll() is None:
            with contextlib.suppress(DeviceUnreachableError):
                return self._connected()
        self._start()
        return self._connected()

    def said(self) -> str:
        """The end of the agent's log."""
        log = Path(self._folder.name) / "log"
        return " ".join(log.read_text(errors="replace").split())[-300:] if log.exists() else ""

    def close(self) -> None:
        """End the agent and its sessions."""
        self._stop()
        self._folder.cleanup()

    def _connected(self) -> Connection:
        return Connection("127.0.0.1", self._port, self._key, self.where)

    def _start(self) -> None:
        self._stop()
        self._started += 1  # a session of the one before may still hold its folder
        own = {"ADAPT_AGENT_KEY": self._key, "TMPDIR": self._folder.name}
        options = ["--work", str(Path(self._folder.name) / f"work-{self._started}"), "--with-parent", str(os.getpid())]
        with (Path(self._folder.name) / "log").open("a") as log:
            self._agent = subprocess.Popen(
                [*self._command, *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | self._variables | own,
                text=True,
                start_new_session=True,  # Ctrl-C at the terminal reaches us alone; we end the agent
            )
        output = self._agent.stdout
        assert output is not None
        ready, _, _ = select.select([output], [], [], _START_S)
        line = output.readline() if ready else ""
        if not line.strip().isdigit():
            raise DeviceUnreachableError(f"{self.where} cannot be used: its agent did not start ({self.said()})")
        self._port = int(line)

    def _stop(self) -> None:
        if self._agent is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._agent.pid, signal.SIGKILL)
        self._agent.wait()
        if self._agent.stdout is not None:
            self._agent.stdout.close()
        self._agent = None
