"""The form of a task file: its tables, their keys, and what each may hold; docs/task-file.md describes it.

`_KEYS`, at the end, is the form: for every table its keys, and for every key the function that checks and converts its
value.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

from gos_adapt.errors import ConfigError
from gos_adapt.task.losses import LOSSES
from gos_adapt.task.metrics import METRICS
from gos_adapt.task.task import MAX_BATCH

if TYPE_CHECKING:
    from pathlib import Path

Keys = dict[str, Callable[[Any, str], Any]]

REQUIRED_SPLITS = ("training", "selection", "test")
MAX_FILE_BYTES = 1 << 16
MAX_LINE = 4096
_LARGEST = 1 << 31
_MAX_SIDE = 4096


def read_tables(path: Path) -> dict[str, Any]:
    """Read the file and the one it extends: checked, converted tables; absent keys stay absent.

    Raises:
        ConfigError: naming the key, what it may hold and what it holds.
    """
    document = _parse(path)
    if "extends" in document:
        name = _text(document.pop("extends"), "extends")
        if "/" in name or "\\" in name:
            raise ConfigError(f"extends must name a file of the same folder, got {_shown(name)}")
        base = _parse(path.parent / name)
        if "extends" in base:
            raise ConfigError(f"extends: {_shown(name)} extends another file itself; one level is allowed")
        document = base | document
    tables = _table(_KEYS, document, "")
    for name, key in (("metric", "name"), ("training", "loss"), *(("splits", split) for split in REQUIRED_SPLITS)):
        if key not in tables.get(name, {}):
            raise ConfigError(f"{name}.{key} is missing")
    return tables


def _parse(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise ConfigError(f"{path.name} is not a file")
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path.name}: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path.name} is larger than {MAX_FILE_BYTES} bytes: not a task file")
    if any(len(line) > MAX_LINE for line in content.splitlines()):  # tomllib is quadratic in the parts of a dotted key
        raise ConfigError(f"{path.name} has lines of more than {MAX_LINE} bytes: not a task file")
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not valid TOML: {error}") from error


def _table(keys: Keys, value: Any, where: str) -> dict[str, Any]:
    """Check a table: known keys only, each converted by its function."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a table, got {_shown(value)}")
    converted = {}
    for key, entry in value.items():
        inner = f"{where}.{key}" if where else key
        if key not in keys:
            nearest = get_close_matches(key, keys, n=1)
            hint = f'did you mean "{nearest[0]}"?' if nearest else f"known here: {', '.join(keys)}"
            raise ConfigError(f"unknown key {_shown(inner)}; {hint}")
        converted[key] = keys[key](entry, inner)
    return converted


def _split_table(value: Any, where: str) -> dict[str, Any]:
    table = _table({"files": _texts, "folder": _text, "take": _take}, value, where)
    if ("files" in table) == ("folder" in table):
        raise ConfigError(f"{where} needs either files or folder")
    return table


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not value:
        raise ConfigError(f"{where} must be a text, got {_shown(value)}")
    return value


def _texts(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where} must be a list of one or more texts, got {_shown(value)}")
    return [_text(entry, where) for entry in value]


def _one_of(*choices: str) -> Callable[[Any, str], str]:
    def convert(value: Any, where: str) -> str:
        if value not in choices:
            raise ConfigError(f"{where} must be one of {', '.join(choices)}, got {_shown(value)}")
        return str(value)

    return convert


def _integer(low: int, high: int) -> Callable[[Any, str], int]:
    def convert(value: Any, where: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"{where} must be an integer from {low} to {high}, got {_shown(value)}")
        return value

    return convert


def _integers(low: int, high: int, *lengths: int) -> Callable[[Any, str], tuple[int, ...]]:
    def convert(value: Any, where: str) -> tuple[int, ...]:
        if not isinstance(value, list) or len(value) not in lengths:
            raise ConfigError(f"{where} must be a list of {_either(lengths)} integers, got {_shown(value)}")
        return tuple(_integer(low, high)(entry, where) for entry in value)

    return convert


def _take(value: Any, where: str) -> tuple[int, ...]:
    take = _integers(0, _LARGEST, 2, 3)(value, where)
    if take[0] >= take[1] or take[2:] == (0,):
        raise ConfigError(f"{where} must be [start, stop] or [start, stop, step], start < stop, step > 0, got {value}")
    return take


def _number(value: Any, where: str) -> float:
    """A number, or a fraction written as a text: ``"1/255"``."""
    try:
        number = float(Fraction(value)) if isinstance(value, str) and len(value) <= 40 else value
        if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number):
            return float(number)
    except (ValueError, ArithmeticError):
        pass  # a text that is no fraction, or a number too large for a float: refused below
    raise ConfigError(f'{where} must be a finite number or a fraction such as "1/255", got {_shown(value)}')


def _positive(value: Any, where: str) -> float:
    number = _number(value, where)
    if number <= 0:
        raise ConfigError(f"{where} must be positive, got {_shown(value)}")
    return number


def _constants(value: Any, where: str) -> tuple[float, ...]:
    if value == []:
        raise ConfigError(f"{where} must be a number or one number a channel, got []")
    return tuple(_number(entry, where) for entry in (value if isinstance(value, list) else [value]))


def _either(lengths: Sequence[int]) -> str:
    return " or ".join(map(str, lengths)) if len(lengths) < 5 else f"{lengths[0]} to {lengths[-1]}"


def _shown(value: Any) -> str:
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits, tables nested too deep
        return f"an oversized {type(value).__name__}"
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


PREPROCESSING_KEYS: Keys = {
    "layout": _one_of("NHWC", "NCHW", "as-is"),
    "model_layout": _one_of("NCHW", "NHWC"),
    "reshape": _integers(1, _LARGEST, *range(1, 7)),
    "scale": _constants,
    "mean": _constants,
    "std": _constants,
}
_KEYS: Keys = {
    "name": _text,
    "extends": _text,
    "input": partial(
        _table,
        PREPROCESSING_KEYS
        | {"array": _text, "offsets": _text, "color": _one_of("RGB", "L"), "resize": _integers(1, _MAX_SIDE, 2)},
    ),
    "target": partial(_table, {"array": _text, "offset": _integer(-_LARGEST, _LARGEST)}),
    "splits": partial(
        _table,
        {"duplicates": _one_of("refuse", "drop")} | dict.fromkeys(("calibration", *REQUIRED_SPLITS), _split_table),
    ),
    "metric": partial(_table, {"name": _one_of(*METRICS)}),
    "augmentation": partial(_table, {"flip": _one_of("horizontal"), "shift": _integer(1, _MAX_SIDE)}),
    "training": partial(_table, {"loss": _one_of(*LOSSES), "batch": _integer(1, MAX_BATCH), "temperature": _positive}),
}
