"""The run folder: where a run keeps what it has finished, so that killing it costs one candidate and not the run.

A folder belongs to one run. `run.json` holds the run's *identity* (whatever changes its result) and the names of the
files the product wrote there; a folder of another run is refused, and only listed files are ever deleted. Artefacts are
replaced atomically. Finished evaluations go to an append-only `Journal`. One process at a time holds the folder.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from gos_adapt import interrupt
from gos_adapt.errors import AdaptError, RunFolderError

if TYPE_CHECKING:
    from typing import Self

    import numpy as np

    Array = np.ndarray[Any, Any]

Policy = Literal["resume", "fresh"]
Identity = Mapping[str, str | int | float | bool | None]

FORMAT = 7  # of everything in the folder; another value makes another run
ENDLESS_S = 1e9
"""For what has no limit of time: JSON has no infinity."""
RUN = "run.json"
JOURNAL = "journal.jsonl"
LOCK = ".lock"
ELSEWHERE = "give a writable folder with --out"


class RunFolder:
    """A run's folder, held by this process until `close` (or the end of a `with` block).

    Build with `open`. `save_*` replaces a file in one step: after a crash it holds the old content or the new, never a
    part. `load_*` gives `None` for what was not saved yet.
    """

    def __init__(self, path: Path, lock: IO[str], identity: Identity, files: list[str]) -> None:
        self.path = path
        self._lock = lock
        self._identity = dict(identity)
        self._files = files
        self._write_run()
        self.journal = Journal(self.claim(JOURNAL))

    @classmethod
    def open(cls, path: Path, identity: Identity, policy: Policy = "resume") -> RunFolder:
        """Create the folder, continue the run in it, or (`"fresh"`) discard that run and begin again.

        Args:
            path: The folder; its parents are created.
            identity: Everything that changes the run's result, as short JSON values: content hashes and options.
            policy: What to do with a run that is there already.

        Raises:
            RunFolderError: the folder cannot be written, is in use, is not a run folder, or holds another run.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            _read_run(path)  # refuses a stranger's folder before anything is written there
            lock = _lock(path)
        except OSError as error:
            raise cannot_write(path, error, ELSEWHERE) from error
        try:
            run = _read_run(path)
            if run and policy == "resume":
                _require_same(path, run["identity"], dict(identity))
            if run and policy == "fresh":
                _discard(path, run["files"])
            return cls(path, lock, identity, run["files"] if run and policy == "resume" else [])
        except AdaptError:
            lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the folder."""
        self.journal.close()
        self._lock.close()

    @property
    def elapsed_s(self) -> float:
        """Seconds this run has worked, over all its processes; of a killed one, up to its last journal record."""
        return self.journal.elapsed_s

    def claim(self, name: str) -> Path:
        """Return the path of file `name` here, listed as ours *before* anything is written to it."""
        if not _is_plain(name):
            raise ValueError(f"a file directly in the run folder, got {name!r}")
        if name not in self._files:
            self._files.append(name)
            self._write_run()
        return self.path / name

    def save_with(self, name: str, write: Callable[[Path], object]) -> Path:
        """Replace file `name` by what `write` puts at the path it is given (same suffix, same folder)."""
        path = self.claim(name)
        replace_atomic(path, write)
        self.journal.mark()
        return path

    def save_bytes(self, name: str, content: bytes) -> Path:
        """Replace file `name`."""
        return self.save_with(name, lambda partial: partial.write_bytes(content))

    def load_bytes(self, name: str) -> bytes | None:
        """Content of file `name`."""
        path = self.path / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunFolderError(f"cannot read {path}: {error.strerror}; make it readable, or use --fresh") from error

    def save_json(self, name: str, value: Any) -> Path:
        """Replace file `name` by `value` as indented JSON (no NaN or infinity)."""
        return self.save_bytes(name, json.dumps(value, indent=2, allow_nan=False).encode() + b"\n")

    def load_json(self, name: str) -> Any:
        """Inverse of `save_json`."""
        content = self.load_bytes(name)
        return None if content is None else _parse(self.path / name, content)

    def save_arrays(self, name: str, arrays: Mapping[str, Array]) -> Path:
        """Replace file `name` (``*.safetensors``) by named arrays."""
        from safetensors.numpy import save

        return self.save_bytes(name, save(dict(arrays)))

    def load_arrays(self, name: str) -> dict[str, Array] | None:
        """Inverse of `save_arrays`."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        content = self.load_bytes(name)
        if content is None:
            return None
        try:
            arrays: dict[str, Array] = load(content)
        except SafetensorError as error:
            raise _damaged(self.path / name, error) from error
        return arrays

    def require_arrays(self, name: str) -> dict[str, Array]:
        """Inverse of `save_arrays` for a file that the journal says is there."""
        arrays = self.load_arrays(name)
        if arrays is None:
            raise _damaged(self.path / name, "the file is gone")
        return arrays

    def remove(self, name: str) -> None:
        """Delete a file of ours, if it is there."""
        try:
            (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.path / name, error) from error

    def _write_run(self) -> None:
        content = {"format": FORMAT, "identity": dict(self._identity), "files": self._files}
        write_atomic(self.path / RUN, json.dumps(content, indent=2).encode() + b"\n")


class Journal:
    """Finished evaluations, key -> JSON value; a record is on disk when `put` returns.

    One line a record: a CRC-32 of the rest, then ``[key, value, elapsed_s]``. A process killed while writing leaves a
    torn last line, which the next one drops: nobody was told that it was there. Any other bad line is damage.

    Raises:
        RunFolderError: from the constructor, when the file is damaged; from `put`, when the record cannot be written
            (the file is then as it was before).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[str, Any] = {}
        self._earlier_s = 0.0
        self._start = time.monotonic()
        try:
            self._size = self._replay(path.read_bytes() if path.exists() else b"")
            self._file = path.open("ab", buffering=0)
            self._file.truncate(self._size)
        except OSError as error:
            raise cannot_write(path, error) from error

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: str) -> bool:
        return key in self._records

    @property
    def elapsed_s(self) -> float:
        """Seconds worked: those of earlier processes up to their last record, and this one's."""
        return self._earlier_s + time.monotonic() - self._start

    def get(self, key: str) -> Any:
        """Return the value of `key`, or `None`."""
        return self._records.get(key)

    def put(self, key: str, value: Any) -> Any:
        """Record `value` (JSON without NaN) under `key`; return it as a resumed run will read it (tuples as lists)."""
        interrupt.check()
        line = _line([key, value, self.elapsed_s])
        self._append(line)
        self._records[key] = json.loads(line[9:])[1]
        return self._records[key]

    def clock(self, stage: str, seconds: float) -> Callable[[], float]:
        """Return what says how many seconds a stage has left; `seconds` counts when it first begins in the run."""
        key = f"clock:{stage}"
        if key not in self:
            self.put(key, [self.elapsed_s, min(seconds, ENDLESS_S)])
        begun_s, allowed_s = self.get(key)
        return lambda: begun_s + allowed_s - self.elapsed_s

    def mark(self) -> None:
        """Record the time worked so far."""
        self._append(_line([None, None, self.elapsed_s]))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, line: bytes) -> None:
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):  # a torn line in the middle would be taken for damage
                self._file.truncate(self._size)
            raise cannot_write(self.path, error) from error
        self._size += len(line)

    def _replay(self, content: bytes) -> int:
        """Take in all records; return the length of `content` without its torn last line."""
        lines = BytesIO(content).readlines()
        for number, line in enumerate(lines, start=1):
            try:
                key, value, elapsed_s = _unline(line)
            except ValueError as error:
                if number == len(lines):
                    return sum(map(len, lines[:-1]))
                raise _damaged(self.path, f"line {number}: {error}") from error
            self._earlier_s = elapsed_s
            if key is not None:
                self._records[key] = value
        return sum(map(len, lines))


def arrays_file(kind: str, key: str) -> str:
    """Name of the file for the arrays of what the journal knows by `key`, so that no other key's are taken for them."""
    return f"{kind}-{sha256(key.encode()).hexdigest()[:16]}.safetensors"


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, entirely or not at all.

    Raises:
        RunFolderError: it cannot be written; nothing half-written stays.
    """
    replace_atomic(path, lambda partial: partial.write_bytes(content))


def replace_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Replace `path` by the file that `write` makes at the path it is given, entirely or not at all.

    Raises:
        RunFolderError: it cannot be written; nothing half-written stays.
    """
    partial = _partial(path)
    try:
        partial.unlink(missing_ok=True)
        write(partial)
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError, otherwise: str = "") -> RunFolderError:
    """Say in one line that `path` cannot be written, why, and what to do about it: `otherwise` where there is room."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        step = "free some space and repeat the command; a run continues, unless --fresh is given"
    else:
        step = otherwise or f"make sure that files can be written in {path.parent}, then repeat the command"
    return RunFolderError(f"cannot write {path}: {error.strerror}; {step}")


def _partial(path: Path) -> Path:
    return path.with_name(f".partial.{path.name}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(path: Path) -> IO[str]:
    lock = (path / LOCK).open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel frees it when its owner dies, however it dies
    except BlockingIOError as error:
        lock.seek(0)
        owner = lock.read(20).strip()
        lock.close()
        raise RunFolderError(
            f"run folder {path} is in use by process {owner}; wait for it, or give another folder with --out"
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _read_run(path: Path) -> dict[str, Any] | None:
    """Content of run.json, or `None` for an empty folder."""
    file = path / RUN
    try:
        content = file.read_bytes()
        strangers = []
    except FileNotFoundError:
        content = None
        strangers = [entry for entry in os.listdir(path) if entry not in (LOCK, _partial(file).name)]
    except OSError as error:
        raise cannot_write(file, error, ELSEWHERE) from error
    if strangers:
        raise RunFolderError(
            f"{path} holds other files ({min(strangers)!r}, {len(strangers)} in all) and is not a run folder; "
            "give a new or empty folder with --out"
        )
    if content is None:
        return None
    try:
        run = json.loads(content)
    except (ValueError, RecursionError):
        run = None
    if (
        not isinstance(run, dict)
        or not isinstance(run.get("identity"), dict)
        or not isinstance(run.get("files"), list)
        or not all(isinstance(name, str) and _is_plain(name) for name in run["files"])
    ):
        raise RunFolderError(
            f"{file} does not describe a run, so which files are ours is not known; give another folder with --out"
        )
    run["identity"] |= {"format": run.get("format")}
    return run


def _discard(path: Path, files: list[str]) -> None:
    for name in files:
        try:
            (path / name).unlink(missing_ok=True)
            _partial(path / name).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path / name, error) from error


def _require_same(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    wanted = wanted | {"format": FORMAT}
    differing = [name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name)]
    if differing:
        what = ", ".join(f"{name} {found.get(name)!s:.40} there, {wanted.get(name)!s:.40} here" for name in differing)
        raise RunFolderError(
            f"{path} holds another run ({what}); discard that one with --fresh, or give another folder with --out"
        )


def _is_plain(name: str) -> bool:
    """Whether `name` is that of a file directly in the folder, and not one of the folder's own."""
    return Path(name).name == name and name.isprintable() and name not in ("", "..", RUN, LOCK)


def _line(record: list[Any]) -> bytes:
    body = json.dumps(record, allow_nan=False, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _unline(line: bytes) -> tuple[str | None, Any, float]:
    """Inverse of `_line`; ValueError says what is wrong."""
    body = line[9:-1]
    if line != b"%08x %s\n" % (zlib.crc32(body), body):
        raise ValueError("the checksum does not match")
    key, value, elapsed_s = json.loads(body)
    return key, value, elapsed_s


def _parse(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, cause: object) -> RunFolderError:
    return RunFolderError(f"{path} is damaged ({cause}); begin again with --fresh, or give another folder with --out")
