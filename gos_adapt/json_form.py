"""Frozen dataclasses to plain JSON values and back, driven by their type hints.

A dataclass becomes an object with one entry per field; one that carries a `kind` (`gos_adapt.quantities`) writes it
first and insists on it when read; one with its own `to_json`/`from_json` pair uses that. Tuples become lists. Readers
ignore entries they do not know.
"""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

LARGEST = {int: 2**63 - 1, float: 1e100}
"""What no number of ours exceeds: of larger ones sums and ratios fail."""


def encode(value: Any) -> Any:
    """Return `value` as dicts, lists, strings, numbers, booleans and None."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value):
        return encode_fields(value)
    if isinstance(value, dict):
        return {key: encode(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return [encode(entry) for entry in value]
    return value


def encode_fields(value: Any) -> dict[str, Any]:
    """Return a dataclass as an object of its fields, its own `to_json` aside."""
    kind = {"kind": value.kind} if _carries_kind(value) else {}
    return kind | {field.name: encode(getattr(value, field.name)) for field in fields(value)}


def decode(hint: Any, form: Any, where: str) -> Any:
    """Read a value of type `hint` from what `encode` wrote.

    Args:
        hint: A dataclass, a scalar type, or a tuple, dict, union or Literal of these.
        form: The JSON value; hostile.
        where: Path of `form` in its file, for messages.

    Raises:
        ValueError: `form` is not of that type; the message says where, what was got and what was expected.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, form, where)
    if origin is tuple:
        return tuple(decode(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(_expect(list, form, where)))
    if origin is dict:
        return {key: decode(arguments[1], entry, f"{where}.{key}") for key, entry in _expect(dict, form, where).items()}
    if hasattr(hint, "from_json"):
        return _decode_own(hint, form, where)
    if is_dataclass(hint):
        return decode_fields(hint, form, where)
    if arguments:
        if form not in arguments:
            raise ValueError(f"{where}: expected one of {', '.join(map(repr, arguments))}, got {_short(form)}")
        return form
    return _decode_scalar(hint, form, where)


def decode_fields(hint: Any, form: Any, where: str) -> Any:
    """Inverse of `encode_fields`; raises as `decode` does."""
    entries, hints = _expect(dict, form, where), get_type_hints(hint)
    if _carries_kind(hint) and entries.get("kind") != hint.kind:
        raise ValueError(f"{where}.kind: expected {hint.kind!r}, got {_short(entries.get('kind'))}")
    missing = [field.name for field in fields(hint) if field.name not in entries]
    if missing:
        raise ValueError(f"{where}: lacks {', '.join(missing)}")
    values = {
        field.name: decode(hints[field.name], entries[field.name], f"{where}.{field.name}") for field in fields(hint)
    }
    try:
        return hint(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _decode_union(arguments: tuple[Any, ...], form: Any, where: str) -> Any:
    """Unions are `X | None`, or of scalars."""
    if form is None and type(None) in arguments:
        return None
    alternatives = [argument for argument in arguments if argument is not type(None)]
    if len(alternatives) == 1:
        return decode(alternatives[0], form, where)
    if type(form) not in alternatives:
        raise ValueError(f"{where}: expected {' or '.join(a.__name__ for a in alternatives)}, got {_short(form)}")
    return form


def _decode_own(hint: Any, form: Any, where: str) -> Any:
    try:
        return hint.from_json(_expect(dict, form, where))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: not a {hint.__name__}: {error}") from error


def _decode_scalar(hint: Any, form: Any, where: str) -> Any:
    """JSON writes 1.0 as 1 in some hands, so a float may be read from an int; a bool is never a number."""
    fits = type(form) is hint or (hint is float and type(form) is int)
    if fits and hint in LARGEST:
        fits = abs(form) <= LARGEST[hint]  # which holds for no NaN
    if not fits:
        raise ValueError(f"{where}: expected {hint.__name__}, got {_short(form)}")
    return float(form) if hint is float else form


def _expect(kind: type, form: Any, where: str) -> Any:
    if not isinstance(form, kind):
        raise ValueError(f"{where}: expected {kind.__name__}, got {_short(form)}")
    return form


def _carries_kind(of: Any) -> bool:
    """Whether `kind` is what sort of number this is, not a field that happens to have the name."""
    return hasattr(of, "kind") and all(field.name != "kind" for field in fields(of))


def _short(form: Any) -> str:
    text = repr(form)
    return text if len(text) <= 60 else f"{text[:57]}..."
