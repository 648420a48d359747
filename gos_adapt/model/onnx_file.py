"""Read an ONNX file, with the weights that lie beside it, into memory."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError, Message
from onnx import external_data_helper

from gos_adapt.errors import ModelImportError
from gos_adapt.model.checks import stored_tensors, tensor_bytes
from gos_adapt.model.wording import quote

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_FILE_BYTES = 2**31 - 1  # of a protobuf message; weights included, since the model must fit one once read


def read_bytes(path: Path) -> bytes:
    """Read a regular file of at most 2 GiB.

    Raises:
        ModelImportError: there is no such file, or it is empty, too large or not a file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelImportError(f"{path} is not a file; give an .onnx file or a .pt2 archive")
        if not 0 < status.st_size <= MAX_FILE_BYTES:
            raise ModelImportError(
                f"{path} has {status.st_size} bytes, must be 1 to {MAX_FILE_BYTES}; "
                "larger models: keep the weights in a file beside the model (external data)"
            )
        return path.read_bytes()
    except OSError as error:
        raise ModelImportError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from None


def parse(content: bytes) -> onnx.ModelProto:
    """Parse the bytes of an ONNX file; weights outside it stay outside.

    Raises:
        ModelImportError: they are not an ONNX model, or a damaged one.
    """
    try:
        proto = onnx.load_model_from_string(content)
    except DecodeError:
        raise ModelImportError("not an ONNX model, or a damaged one; export or copy it again") from None
    # Protobuf hands out a name that is not UTF-8 as bytes.
    if any(isinstance(text, bytes) for text in _texts(proto)):
        raise ModelImportError("a damaged ONNX model: a name in it is not UTF-8; export or copy it again")
    return proto


def inline_weights(proto: onnx.ModelProto, folder: Path) -> None:
    """Read the tensors that lie outside the model file into `proto`.

    Raises:
        ModelImportError: a location is not a plain file inside `folder`, links resolved, or its size is wrong.
    """
    total = proto.ByteSize()
    for tensor in stored_tensors(proto.graph):
        if not external_data_helper.uses_external_data(tensor):
            continue
        total += tensor_bytes(tensor)
        if total > MAX_FILE_BYTES:
            raise ModelImportError(f"model and weights exceed {MAX_FILE_BYTES} bytes together; split the model")
        tensor.raw_data = _read_outside(tensor, folder)
        tensor.ClearField("data_location")
        del tensor.external_data[:]


def _texts(message: Message) -> Iterator[str | bytes]:
    """Yield every text in a protobuf message."""
    for field, value in message.ListFields():
        values = value if field.is_repeated else [value]
        if field.type == field.TYPE_MESSAGE:
            for part in values:
                yield from _texts(part)
        elif field.type == field.TYPE_STRING:
            yield from values


def _read_outside(tensor: onnx.TensorProto, folder: Path) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, size = entries.get("location", ""), tensor_bytes(tensor)
    if Path(location).is_absolute() or ".." in Path(location).parts or "\0" in location:
        raise _refused(tensor, location, "it must name a file inside the model's folder")
    file = (folder / location).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise _refused(tensor, location, "it leads out of the model's folder through a link")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
        if offset < 0 or length != size:
            raise _refused(tensor, location, f"offset {offset}, length {length}, expected length {size}")
        if not file.is_file():
            raise _refused(tensor, location, "there is no such file")
        with file.open("rb") as stream:
            stream.seek(offset)
            content: bytes = stream.read(size)
    except (OSError, ValueError, OverflowError) as error:
        raise _refused(tensor, location, str(error)) from None
    if len(content) < size:
        raise _refused(tensor, location, f"it ends after {len(content)} of {size} bytes")
    return content


def _refused(tensor: onnx.TensorProto, location: str, reason: str) -> ModelImportError:
    return ModelImportError(
        f"tensor {quote(tensor.name)} lies in {quote(repr(location))}, which was not read: {quote(reason)}; "
        "keep the data file beside the model, as the exporter wrote it"
    )
