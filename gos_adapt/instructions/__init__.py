"""The instruction table: one small file per family, joined here."""

from __future__ import annotations

from gos_adapt.instructions.base import Instruction

INSTRUCTIONS: dict[str, Instruction] = {}
