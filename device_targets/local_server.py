"""The RPC server process behind the device `host`: TVM's own server, on loopback, alive only as long as its parent.

Run as ``python -m device_targets.local_server``; the session key comes on standard input, never on a command line that
others can read, and the port goes to standard output. Each session is served by a forked child, so a kernel that
crashes takes only its session with it. Everybody on this machine can connect, so whoever does not send the key at once
is shut out.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import sys
import time
from hmac import compare_digest
from pathlib import Path

from device_targets.threads import start_threads

_PR_SET_PDEATHSIG = 1
START_THREADS = "adapt.start_threads"
GREETING_S = 3.0
"""For the key to arrive; a session sends it as soon as it is connected."""


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def without_torch() -> None:
    """Keep TVM from importing torch into a process that has no use for it, which is most of what its start takes.

    TVM's foreign-function layer imports torch wherever it can, and does without it where it cannot.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # makes `import torch` an ImportError


def main() -> None:
    """Serve until the parent is gone."""
    parent = os.getppid()
    die_with_parent()
    os.register_at_fork(after_in_child=die_with_parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends us
    key = sys.stdin.readline().strip()
    without_torch()

    from tvm.rpc import server  # slow, so after the parent's death is taken care of
    from tvm_ffi import register_global_func

    server.logger.setLevel("ERROR")
    register_global_func(START_THREADS, start_threads)
    if os.getppid() != parent:
        return
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    port = listener.getsockname()[1]
    home = Path.cwd()
    print(port, flush=True)
    while True:
        connection, address = listener.accept()
        with connection:
            if not _greeted(connection, key):
                continue
            try:
                server._serving(connection, address, {}, None)
            except Exception as crash:  # of the session's child, as TVM reports it: the next session is served
                print(crash, file=sys.stderr, flush=True)
                os.chdir(home)  # TVM leaves us in the session's folder, which is gone


def _greeted(connection: socket.socket, key: str) -> bool:
    """Whether who connected knows the key; it is answered, and may then be silent for as long as it likes.

    TVM's own loop waits for a greeting without end, and ends itself over one that is empty or no text.
    """
    from tvm.rpc import base

    client, server = f"client:{key}".encode(), f"server:{key}".encode()
    greeting = struct.pack("<ii", base.RPC_MAGIC, len(client)) + client
    end = time.monotonic() + GREETING_S
    heard = b""
    try:
        while len(heard) < len(greeting):
            connection.settimeout(max(end - time.monotonic(), 1e-3))
            said = connection.recv(len(greeting) - len(heard))
            if not said:
                return False
            heard += said
        if not compare_digest(heard, greeting):
            return False
        connection.settimeout(None)
        connection.sendall(struct.pack("<ii", base.RPC_CODE_SUCCESS, len(server)) + server)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
