from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from gos_adapt.cost.peaks import Peaks, kept_peaks
from gos_adapt.quantities import Conditions

if TYPE_CHECKING:
    from pathlib import Path

HOST = ("host", "znver5", "2 threads", "tvm 0.27")


def peaks(flops_per_s: float = 4e11, bytes_per_s: float = 4e10) -> Peaks:
    return Peaks(flops_per_s, bytes_per_s, Conditions("host", 2, "2026-11-21T12:00:00+00:00", "test"))


class Device:
    """Measures the given peaks, one after the other, and remembers what was said."""

    def __init__(self, *measured: Peaks) -> None:
        self.waiting, self.notes = list(measured), list[str]()

    def kept(self, identity: tuple[str, ...] = HOST) -> Peaks:
        return kept_peaks(identity, lambda: self.waiting.pop(0), self.notes.append)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GOS_ADAPT_CACHE", str(tmp_path))
    return tmp_path


def test_peaks_are_measured_once_and_kept(cache: Path) -> None:
    device = Device(peaks())
    assert device.kept() == device.kept() == peaks()
    (file,) = cache.iterdir()
    assert file.name == "peaks-host-znver5-2-threads-tvm-0.27.json"
    assert json.loads(file.read_text())["kind"] == "measured"
    assert device.notes == []


def test_another_thread_count_has_peaks_of_its_own() -> None:
    device = Device(peaks(), peaks(2e11))
    assert device.kept() == peaks()
    assert device.kept(("host", "znver5", "1 threads", "tvm 0.27")) == peaks(2e11)
    assert device.kept() == peaks()


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"\xff", b'{"kind": "predicted"}', b"[" * 100_000],
    ids=["empty", "torn", "other", "not text", "other kind", "deep"],
)
def test_a_damaged_file_is_measured_again_and_said(cache: Path, damage: bytes) -> None:
    device = Device(peaks(), peaks(5e11))
    device.kept()
    (file,) = cache.iterdir()
    file.write_bytes(damage)
    assert device.kept() == device.kept() == peaks(5e11)
    assert len(device.notes) == 1
    assert f"{file} cannot be used" in device.notes[0]


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_peaks_that_cannot_be_are_measured_again(cache: Path, value: float) -> None:
    device = Device(peaks(), peaks())
    device.kept()
    (file,) = cache.iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"flops_per_s": value}))
    assert device.kept() == peaks()
    assert "must be positive" in device.notes[0]


def test_the_roof_is_what_memory_allows_until_arithmetic_does_not() -> None:
    assert peaks(4e11, 4e10).roof(flops=100, traffic_bytes=100) == 4e10
    assert peaks(4e11, 4e10).roof(flops=1000, traffic_bytes=100) == 4e11
    assert peaks(4e11, 4e10).roof(flops=0, traffic_bytes=100) == 0
