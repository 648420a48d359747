"""Read an operator from its text form: strict, bounded, and the exact inverse of `OperatorGraph.text`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gos_adapt.errors import Rejection
from gos_adapt.operators.graph import INPUT, LEAVES, MAX_NODES, Node, OperatorGraph, typed

if TYPE_CHECKING:
    from gos_adapt.instructions.base import HyperValue, Shape

MAX_LENGTH = 8192
"""Characters; the longest legal operator has far fewer."""

_LEAF = re.compile(rf"({'|'.join(LEAVES)}) (\d{{1,9}}(?:x\d{{1,9}})*)")
_INSTRUCTION = re.compile(r"([a-z][a-z0-9_]*)\(([^()]*)\)")
_ARGUMENT = re.compile(r"v(\d{1,2})")
_SETTING = re.compile(r"([a-z_]+)=(\S+)")
_INTEGER = re.compile(r"-?\d{1,9}")
_FLOAT = re.compile(r"-?\d{1,30}(?:\.\d{1,30})?(?:e[+-]?\d{1,3})?")
_WORD = re.compile(r"[a-z][a-z0-9_]{0,39}")
_SIZES = re.compile(r"-?\d{1,9}(?:x|(?:x-?\d{1,9})+)")


def parse(text: str) -> OperatorGraph | Rejection:
    """Return the operator whose `text` is exactly this one, or why there is none; never raises."""
    if len(text) > MAX_LENGTH:
        return Rejection(f"{len(text)} characters, at most {MAX_LENGTH}")
    lines = text.split("\n")
    if len(lines) > MAX_NODES:
        return Rejection(f"{len(lines)} lines, at most {MAX_NODES}")
    nodes: list[Node] = []
    for i, line in enumerate(lines):
        prefix = f"v{i} = "
        node = _node(line.removeprefix(prefix)) if line.startswith(prefix) else Rejection(f"must start with {prefix!r}")
        if isinstance(node, Rejection):
            return Rejection(f"line {i + 1}: {node.reason}, got {line[:80]!r}")
        nodes.append(node)
    graph = typed(tuple(nodes))
    if isinstance(graph, OperatorGraph) and graph.text != text:
        return Rejection("not the text form of the operator it describes (spaces, leading zeros or order differ)")
    return graph


def _node(words: str) -> Node | Rejection:
    if leaf := _LEAF.fullmatch(words):
        return Node(leaf[1], shape=_sizes(leaf[2]))
    instruction = _INSTRUCTION.fullmatch(words)
    if instruction is None:
        return Rejection(f"'{INPUT} 3x8x8', 'weight 16x3' or 'name(v0, setting=1)' expected")
    arguments: list[int] = []
    settings: list[tuple[str, HyperValue]] = []
    for word in instruction[2].split(", "):
        if argument := _ARGUMENT.fullmatch(word):
            arguments.append(int(argument[1]))
        elif (setting := _SETTING.fullmatch(word)) and (value := _value(setting[2])) is not None:
            settings.append((setting[1], value))
        else:
            return Rejection(f"{word[:40]!r} is neither an argument nor a setting")
    return Node(instruction[1], tuple(arguments), tuple(settings))


def _value(word: str) -> HyperValue | None:
    if _INTEGER.fullmatch(word):
        return int(word)
    if _SIZES.fullmatch(word):
        return _sizes(word)
    if _WORD.fullmatch(word):
        return word
    return float(word) if _FLOAT.fullmatch(word) else None


def _sizes(word: str) -> Shape:
    return tuple(int(size) for size in word.rstrip("x").split("x"))
