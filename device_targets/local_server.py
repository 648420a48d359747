"""The RPC server process behind the device `host`: TVM's own server, on loopback, alive only as long as its parent.

Run as ``python -m device_targets.local_server``; the session key comes on standard input, never on a command line that
others can read, and the port goes to standard output. Each session is served by a forked child, so a kernel that
crashes takes only its session with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

from device_targets.threads import start_threads

_PR_SET_PDEATHSIG = 1
START_THREADS = "adapt.start_threads"


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
        try:
            server._listen_loop(listener, port, key, None, None, None)
        except RuntimeError as crash:  # TVM reports a crashed session child this way; the next session is served
            print(crash, file=sys.stderr, flush=True)
            os.chdir(home)  # TVM leaves us in the session's folder, which is gone


if __name__ == "__main__":
    main()
