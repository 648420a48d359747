"""Attention: every position of a map takes from all positions of another, in proportion to how they match.

Queries, keys and values are maps ``(c, h, w)``; a position is a token, and `heads` split the channels. Keys and values
have the same positions, queries and keys the same channels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gos_adapt.errors import Rejection
from gos_adapt.instructions.base import Hyper, Instruction, Kind, OnnxEmitter, Shape
from gos_adapt.instructions.notation import term
from gos_adapt.instructions.rules import as_int, integer, shape_rule
from gos_adapt.instructions.structure import reshape_onnx

if TYPE_CHECKING:
    import torch

    from gos_adapt.instructions.windows import Array

Names = tuple[str, ...]
Shapes = tuple[Shape, ...]
HEADS = (1, 2, 4, 8)


def _attention_shape(q: Shape, k: Shape, v: Shape, heads: int) -> Shape | Rejection:
    if q[0] != k[0] or k[1:] != v[1:]:
        return Rejection(f"queries {q}, keys {k} and values {v} do not belong together")
    if q[0] % heads or v[0] % heads:
        return Rejection(f"{heads} heads do not divide {q[0]} and {v[0]} channels")
    return (v[0], *q[1:])


def scale_of(channels: int, heads: int) -> float:
    """Return what products of a query and a key are multiplied by: 1/√(channels of a head)."""
    return 1 / math.sqrt(channels // heads)


# softmax(kᵀq) over the keys, then the values' weighted sum


def _attention_numpy(q: Array, k: Array, v: Array, heads: int) -> Array:
    queries, keys, values = (_split(x, heads) for x in (q, k, v))
    match = keys.swapaxes(2, 3) @ queries * np.float32(scale_of(q.shape[1], heads))
    mixed: Array = values @ _softmax(match, 2)
    return mixed.reshape(q.shape[0], v.shape[1], *q.shape[2:])


def _attention_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    queries, keys, values = (_split(x, heads) for x in (q, k, v))
    match = keys.transpose(2, 3) @ queries * scale_of(q.shape[1], heads)
    mixed: torch.Tensor = values @ match.softmax(dim=2)
    return mixed.reshape(q.shape[0], v.shape[1], *q.shape[2:])


def _attention_onnx(emitter: OnnxEmitter, names: Names, shapes: Shapes, hyper: Hyper) -> str:
    heads = as_int(hyper["heads"])
    queries, keys, values = _split_onnx(emitter, names, shapes, heads)
    match = emitter.node("MatMul", [emitter.node("Transpose", [keys], perm=[0, 1, 3, 2]), queries])
    scaled = emitter.node("Mul", [match, emitter.constant(np.array(scale_of(shapes[0][0], heads), np.float32))])
    taken = emitter.node("MatMul", [values, emitter.node("Softmax", [scaled], axis=2)])
    return reshape_onnx(emitter, taken, (shapes[2][0], *shapes[0][1:]))


def _attention_macs(arguments: Shapes, _result: Shape, _hyper: Hyper) -> int:
    q, k, v = arguments
    return math.prod(q[1:]) * math.prod(k[1:]) * (q[0] + v[0])


# Values and keys summed up over their positions first: no matrix of all pairs of positions


def _linear_numpy(q: Array, k: Array, v: Array, heads: int) -> Array:
    queries, keys, values = (_split(x, heads) for x in (q, k, v))
    context = values @ _softmax(keys, 3).swapaxes(2, 3)
    mixed: Array = context @ _softmax(queries, 2)
    return mixed.reshape(q.shape[0], v.shape[1], *q.shape[2:])


def _linear_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    queries, keys, values = (_split(x, heads) for x in (q, k, v))
    context = values @ keys.softmax(dim=3).transpose(2, 3)
    mixed: torch.Tensor = context @ queries.softmax(dim=2)
    return mixed.reshape(q.shape[0], v.shape[1], *q.shape[2:])


def _linear_onnx(emitter: OnnxEmitter, names: Names, shapes: Shapes, hyper: Hyper) -> str:
    queries, keys, values = _split_onnx(emitter, names, shapes, as_int(hyper["heads"]))
    spread = emitter.node("Transpose", [emitter.node("Softmax", [keys], axis=3)], perm=[0, 1, 3, 2])
    context = emitter.node("MatMul", [values, spread])
    taken = emitter.node("MatMul", [context, emitter.node("Softmax", [queries], axis=2)])
    return reshape_onnx(emitter, taken, (shapes[2][0], *shapes[0][1:]))


def _linear_macs(arguments: Shapes, _result: Shape, hyper: Hyper) -> int:
    q, k, v = arguments
    return (math.prod(q[1:]) + math.prod(k[1:])) * q[0] * v[0] // as_int(hyper["heads"])


def _split(x: Any, heads: int) -> Any:
    """``(n, c, h, w)`` to ``(n, heads, c / heads, h * w)``; of numpy or torch."""
    return x.reshape(x.shape[0], heads, x.shape[1] // heads, -1)


def _split_onnx(emitter: OnnxEmitter, names: Names, shapes: Shapes, heads: int) -> list[str]:
    return [
        reshape_onnx(emitter, name, (heads, shape[0] // heads, math.prod(shape[1:])))
        for name, shape in zip(names, shapes, strict=True)
    ]


def _softmax(x: Array, axis: int) -> Array:
    exponentials = np.exp(x - x.max(axis=axis, keepdims=True))
    shares: Array = exponentials / exponentials.sum(axis=axis, keepdims=True)
    return shares


ROWS = (
    Instruction(
        name="attention",
        arguments=(Kind.FEATURE,) * 3,
        infer=shape_rule(_attention_shape, 3, 3, 3, heads=integer()),
        numpy=_attention_numpy,
        torch=_attention_torch,
        onnx=_attention_onnx,
        hyperparameters={"heads": HEADS},
        macs=_attention_macs,
        equation=term("attention", lambda heads: f"{heads} heads"),
    ),
    # Shen et al., "Efficient attention: attention with linear complexities", WACV 2021
    Instruction(
        name="linear_attention",
        arguments=(Kind.FEATURE,) * 3,
        infer=shape_rule(_attention_shape, 3, 3, 3, heads=integer()),
        numpy=_linear_numpy,
        torch=_linear_torch,
        onnx=_linear_onnx,
        hyperparameters={"heads": HEADS},
        macs=_linear_macs,
        equation=term("attend", lambda heads: f"linear, {heads} heads"),
    ),
)
