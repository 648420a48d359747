"""Load a model in a process of its own, so that a hostile file costs that process and nothing else.

ONNX's shape inference and ONNX Runtime are native code: there are small files that make them abort, or compute without
end. The checks of this package keep memory bounded; this keeps the caller alive.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from device_targets import child_process
from gos_adapt import errors
from gos_adapt.errors import AdaptError, ModelImportError

MAX_SECONDS = 600
MAX_ADDRESS_SPACE_BYTES = 2**35  # a guard against the absurd: libraries map far more than they use


def load_apart(path: Path) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return the original and the canonical model of the file at `path`.

    Raises:
        AdaptError: what `load_model` raised over there, or `ModelImportError` when it was killed or took too long.
    """
    with TemporaryDirectory(prefix="gos-adapt-") as folder:
        command = [*child_process.command("gos_adapt.model.load_apart"), str(path.absolute()), folder]
        try:
            ended = subprocess.run(
                command,
                env=child_process.environment(),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=MAX_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ModelImportError(f"{path.name}: reading it took over {MAX_SECONDS} s; give a smaller model") from None
        if ended.returncode < 0:
            raise ModelImportError(
                f"{path.name}: reading it ended in {signal.Signals(-ended.returncode).name}; its shapes or attributes "
                "are not what an exporter writes: export the model again"
            )
        if ended.returncode > 0:
            raise RuntimeError(ended.stderr)  # a bug of ours, with its traceback
        refusal = Path(folder, "error.json")
        if refusal.exists():
            form = json.loads(refusal.read_text())
            raise getattr(errors, form["error"])(form["message"])
        return onnx.load(Path(folder, "original.onnx")), onnx.load(Path(folder, "canonical.onnx"))


def main(path: Path, folder: Path) -> None:
    """Load `path` and leave the two models, or why there are none, in `folder`."""
    from gos_adapt.model.load import load_model  # this module is imported by it

    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE_BYTES, MAX_ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        model = load_model(path, apart=False)
    except AdaptError as error:
        form = {"error": type(error).__name__, "message": str(error)}
        (folder / "error.json").write_text(json.dumps(form))
        return
    (folder / "original.onnx").write_bytes(model.original.SerializeToString())
    (folder / "canonical.onnx").write_bytes(model.proto.SerializeToString())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
