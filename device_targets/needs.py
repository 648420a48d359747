"""What a compiled library needs of the machine that runs it, checked before the machine meets it.

A library for another architecture cannot be loaded, and TVM says of it only that there is no such file. One whose code
uses a CPU feature that the machine lacks does load, and its first kernel ends the process with an illegal instruction.
So the linker writes the features into a section of the library (`tvm_passes.link`), where they cannot get lost, and
whoever is about to load it compares.

Layout of ELF files: System V ABI, chapter 4; numbers of machines: its registry of e_machine.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from gos_adapt.errors import DeviceError

if TYPE_CHECKING:
    from pathlib import Path

    from device_targets.device import Device

SECTION = ".adapt.features"
_HEADER = struct.Struct("<4sBB10xHHIQQQIHHHHHH")
_SECTION_HEADER = struct.Struct("<IIQQQQ24x")
_ELF64_LITTLE_ENDIAN = (b"\x7fELF", 2, 1)
_MACHINES = {62: "x86_64", 183: "aarch64"}
_MAX_BYTES = 2**16
"""Of a section that is read: a hundred times what the longest list of features takes."""


@dataclass(frozen=True)
class Needs:
    """What a library needs.

    Attributes:
        architecture: As ``uname -m`` calls it.
        features: CPU features that its code may use, in the names of /proc/cpuinfo; `None` when it does not say.
    """

    architecture: str
    features: frozenset[str] | None


def read_needs(library: Path) -> Needs:
    """Read what a library needs, without running any of it.

    Raises:
        ValueError: it is no library for a 64-bit Linux.
        OSError: it cannot be read.
    """
    with library.open("rb") as file:
        try:
            magic, bits, order, _, machine, _, _, _, table, _, _, _, _, _, count, names = _HEADER.unpack(
                file.read(_HEADER.size)
            )
            if (magic, bits, order) != _ELF64_LITTLE_ENDIAN:
                raise ValueError("it is no 64-bit ELF file")
            features = _read_section(file, table, count, names)
        except (struct.error, OverflowError, UnicodeDecodeError) as error:
            raise ValueError("its headers are damaged") from error
    return Needs(
        _MACHINES.get(machine, f"machine {machine}"), None if features is None else frozenset(features.split())
    )


def check_needs(library: Path, device: Device) -> None:
    """Refuse a library that the device cannot run.

    Raises:
        DeviceError: it is for another architecture, or may use CPU features that the device lacks (the message names
            them), or does not say what it needs.
    """
    if reason := _unfit(library, device):
        raise DeviceError(
            f"device {device.name} refused {library.name}: {reason}; compile the model with --target {device.name}"
        )


def _unfit(library: Path, device: Device) -> str:
    """Say why the device cannot run a library; nothing where it can."""
    try:
        needs = read_needs(library)
    except (ValueError, OSError) as error:
        return str(error)
    if needs.architecture != device.architecture:
        return f"it is code for {needs.architecture}, and the device is {device.architecture}"
    if needs.features is None:
        return "it does not say which CPU features its code may use"
    lacking = needs.features - device.features
    return f"its code may use {', '.join(sorted(lacking))}, which the CPU lacks" if lacking else ""


def _read_section(file: BinaryIO, table: int, count: int, names: int) -> str | None:
    """Return the text of our section; `None` where there is none."""
    file.seek(table)
    content = file.read(count * _SECTION_HEADER.size)
    headers = list(_SECTION_HEADER.iter_unpack(content))
    if names >= len(headers):
        return None
    labels = _read_at(file, headers[names])
    for header in headers:
        start = header[0]
        if labels[start : start + len(SECTION) + 1] == SECTION.encode() + b"\0":
            return _read_at(file, header).rstrip(b"\0").decode("ascii")
    return None


def _read_at(file: BinaryIO, header: tuple[int, ...]) -> bytes:
    _, _, _, _, offset, size = header
    file.seek(offset)
    return file.read(min(size, _MAX_BYTES))
