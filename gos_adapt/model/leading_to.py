"""Which nodes of a graph some tensors depend on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx


def leading_to(nodes: Sequence[onnx.NodeProto], wanted: Iterable[str]) -> list[onnx.NodeProto]:
    """Return those of `nodes`, given and returned in topological order, that the tensors named `wanted` depend on."""
    needed, found = set(wanted), []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            needed |= set(node.input)
            found.append(node)
    return found[::-1]
