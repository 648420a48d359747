"""What a device can do at best, measured once and kept: the roofs of the roofline model.

Reference: Williams, Waterman, Patterson 2009, "Roofline".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gos_adapt.cache_folder import cache_folder
from gos_adapt.json_form import decode, encode
from gos_adapt.quantities import Conditions  # noqa: TC001 - `decode` reads the annotation
from gos_adapt.run_folder import write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Peaks:
    """What a device reached, on all its threads.

    Attributes:
        flops_per_s: float32 operations a second, by multiply-adds in registers.
        bytes_per_s: Bytes a second, read from memory.
        conditions: Under what they were measured.
    """

    kind: ClassVar[str] = "measured"
    flops_per_s: float
    bytes_per_s: float
    conditions: Conditions

    def __post_init__(self) -> None:
        if not (self.flops_per_s > 0 and self.bytes_per_s > 0):
            raise ValueError(f"peaks must be positive, got {self.flops_per_s} and {self.bytes_per_s}")

    def roof(self, flops: int, traffic_bytes: int) -> float:
        """Operations a second that are possible when all of `traffic_bytes` goes to or comes from memory once."""
        return min(self.flops_per_s, self.bytes_per_s * flops / traffic_bytes)


def kept_peaks(identity: Sequence[str], measure: Callable[[], Peaks], note: Callable[[str], None]) -> Peaks:
    """Return the peaks that are kept in the cache folder; measure and keep them where there are none.

    Args:
        identity: Words that say of what: another device, thread count or compiler has other peaks.
        measure: Measures them.
        note: Told when what is kept cannot be used.

    Raises:
        ConfigError: there is no cache folder.
        RunFolderError: they cannot be kept.
    """
    path = peaks_file(identity)
    kept = _read(path, note)
    if kept is not None:
        return kept
    peaks = measure()
    write_atomic(path, json.dumps(encode(peaks), indent=2).encode() + b"\n")
    return peaks


def peaks_file(identity: Sequence[str]) -> Path:
    """Return where the peaks of `identity` are kept."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", " ".join(("peaks", *identity)))
    return cache_folder() / f"{words}.json"


def _read(path: Path, note: Callable[[str], None]) -> Peaks | None:
    try:
        kept: Peaks = decode(Peaks, json.loads(path.read_bytes()), path.name)
        return kept
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        note(f"the peaks in {path} cannot be used ({error}); they are measured again")
        return None
