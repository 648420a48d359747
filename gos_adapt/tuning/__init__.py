"""Choose schedules by measurement: trials on the device, and the store that remembers them."""

from __future__ import annotations

from gos_adapt.tuning.settle import contested, settle
from gos_adapt.tuning.store import Look, Record, Store
from gos_adapt.tuning.tuner import Tuner, Tuning, open_store

__all__ = ["Look", "Record", "Store", "Tuner", "Tuning", "contested", "open_store", "settle"]
