"""Self-attention in a model as one operator, however an exporter wrote it.

Exporters fuse, split, scale, reshape and transpose in many ways; what they mean is the same: queries, keys and values
are affine in each token of the source, and the result is affine in each token of what the values' mixture gives. So
the matrices are not read from the nodes but measured: the nodes are run on unit vectors. Whether the operator then is
the same function is checked on random tokens; where it is not (a mask, a position bias, another normalisation), the
place is no site.

Tokens ``(n, d)`` are read as maps ``(d, 1, n)``, so that the projections are pointwise convolutions and have all their
relatives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch

from gos_adapt.errors import Rejection, UnsupportedOperatorError
from gos_adapt.model.torch_executor import TorchExecutor
from gos_adapt.operators.builder import Builder
from gos_adapt.operators.canonical import canonicalise
from gos_adapt.operators.torch_form import TorchOperator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from gos_adapt.instructions.base import Shape
    from gos_adapt.model.model import Array
    from gos_adapt.model.read_operator import Tensors
    from gos_adapt.operators.graph import OperatorGraph

TOLERANCE = 1e-4
"""Of the result's scale."""
MAX_WORK = 2**20
"""Tokens times channels squared. Larger places are not measured: finding sites must stay quick."""


@dataclass(frozen=True)
class AttentionNodes:
    """Where the parts of an attention are.

    Attributes:
        source: The tokens, ``(n, d)``.
        queries: First argument of the product that the softmax is of.
        keys: Second argument.
        matches: What the softmax is of.
        values: Second argument of the product with the softmax.
        mixed: That product.
        result: The tokens that come out, ``(n, e)``.
    """

    source: str
    queries: str
    keys: str
    matches: str
    values: str
    mixed: str
    result: str


def read_attention(
    nodes: Sequence[onnx.NodeProto], names: AttentionNodes, tensors: Tensors
) -> tuple[OperatorGraph, tuple[Array, ...]] | Rejection:
    """Measure what nodes compute.

    Args:
        nodes: From the source to the result, in topological order.
        names: Of their tensors.
        tensors: Of the graph they are from.

    Returns:
        The canonical operator and its weights, or why there is none.
    """
    source, result = tensors.shapes.get(names.source, ()), tensors.shapes.get(names.result, ())
    if len(source) != 2 or len(result) != 2 or source[0] != result[0]:
        return Rejection(f"tokens of one length expected, got {source} and {result}")
    if math.prod(source) * source[1] > MAX_WORK:
        return Rejection("too large to be measured")
    try:
        executor = TorchExecutor(_part(nodes, names, tensors))
    except UnsupportedOperatorError as error:
        return Rejection(str(error))
    with torch.no_grad():
        found = _measured(names, source, executor)
        if isinstance(found, Rejection):
            return found
        graph, weights = found
        tokens = torch.randn(1, *source, generator=torch.Generator().manual_seed(0))
        (wanted,) = executor.compute({names.source: tokens}, (names.result,))
        got = TorchOperator(graph, weights)(tokens)
        if not torch.allclose(got, wanted, rtol=0, atol=TOLERANCE * float(wanted.abs().max())):
            return Rejection("it is no softmax attention of affine queries, keys and values")
    return graph, weights


def _part(nodes: Sequence[onnx.NodeProto], names: AttentionNodes, tensors: Tensors) -> onnx.ModelProto:
    """The nodes as a model of their own."""
    read = dict.fromkeys(name for node in nodes for name in node.input if name in tensors.constants)
    source, result = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *tensors.shapes[name]])
        for name in (names.source, names.result)
    )
    constants = [onnx.numpy_helper.from_array(tensors.constants[name], name) for name in read]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "attention", [source], [result], constants))


def _measured(
    names: AttentionNodes, source: Shape, executor: TorchExecutor
) -> tuple[OperatorGraph, tuple[Array, ...]] | Rejection:
    n, d = source
    tokens = torch.randn(1, n, d, generator=torch.Generator().manual_seed(1))
    wanted = (names.queries, names.keys, names.values, names.matches, names.mixed)
    found = executor.compute({names.source: tokens}, wanted)
    if any(part.ndim not in (3, 4) or part.shape[0] != 1 for part in found):
        return Rejection("its heads are no axis of their own")
    queries, keys, values, matches, mixed = map(_with_heads, found)
    heads, per_head = queries.shape[1], queries.shape[3]
    if mixed.shape[:3] != (1, heads, n) or values.shape[:3] != (1, heads, n) or keys.shape[3] != n:
        return Rejection("it is not over the tokens alone")
    products = queries @ keys
    factor = float((matches * products).sum() / products.square().sum().clamp(min=1e-30))

    def projection(name: str, axes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Matrix ``(out, d)`` and bias of a tensor, whose axes give (token, head, channel)."""

        def project(x: Tensor) -> Tensor:
            (part,) = executor.compute({names.source: x}, (name,))
            return _with_heads(part).permute(0, *axes).flatten(2)

        return _affine(project, n, d)

    # A constant of the keys shifts all matches of a query alike, which a softmax does not see; one of the values is in
    # every mixture of them, and so in the bias of the result.
    query, (key, _) = projection(names.queries, (2, 1, 3)), projection(names.keys, (3, 1, 2))
    value, constant = projection(names.values, (2, 1, 3))
    gain = factor * math.sqrt(per_head)  # the instruction divides by this root itself

    def outward(x: Tensor) -> Tensor:
        given = x.reshape(1, n, heads, -1).transpose(1, 2).reshape(found[-1].shape)
        return executor.compute({names.mixed: given}, (names.result,))[0]

    out, shift = _affine(outward, n, heads * mixed.shape[3])
    shift = shift + out @ constant
    is_projected = not torch.equal(out, torch.eye(*out.shape))
    parts = _Parts(source, heads, gain * query[0], gain * query[1], key, value, out if is_projected else None, shift)
    return parts.operator()


@dataclass(frozen=True)
class _Parts:
    """Matrices ``(out, in)`` and biases ``(out,)`` of an attention over tokens of shape `source`."""

    source: Shape
    heads: int
    query: Tensor
    query_bias: Tensor
    key: Tensor
    value: Tensor
    out: Tensor | None
    bias: Tensor

    def operator(self) -> tuple[OperatorGraph, tuple[Array, ...]] | Rejection:
        """The canonical operator and its weights."""
        n, d = self.source
        b, leaves = Builder(), []

        def projected(x: int, matrix: Tensor) -> int:
            leaves.append(matrix[..., None, None])
            return b.convolution(x, len(matrix), (1, 1))

        def shifted(x: int, bias: Tensor) -> int:
            if not bias.any():
                return x
            leaves.append(bias)
            return b.bias(x)

        x = b.apply("reshape", b.apply("transpose", b.input(n, d)), shape=(d, 1, n))
        queries = shifted(projected(x, self.query), self.query_bias)
        keys, values = projected(x, self.key), projected(x, self.value)
        y = b.apply("attention", queries, keys, values, heads=self.heads)
        y = shifted(y if self.out is None else projected(y, self.out), self.bias)
        b.apply("transpose", b.apply("reshape", y, shape=(len(self.bias), n)))
        graph = b.graph()
        if isinstance(graph, Rejection):
            return graph
        canonical = canonicalise(graph)
        weights = [np.ascontiguousarray(leaf.numpy(), np.float32) for leaf in leaves]
        return canonical.graph, tuple(canonical.weights(weights))


def _with_heads(x: Tensor) -> Tensor:
    """``(n, heads, ., .)``, also where there is one head without an axis of its own."""
    return x if x.ndim == 4 else x[:, None]


def _affine(function: Callable[[Tensor], Tensor], n: int, d: int) -> tuple[Tensor, Tensor]:
    """Matrix ``(out, d)`` and bias ``(out,)`` of what is done to every token ``(1, n, d)`` alike."""
    bias = function(torch.zeros(1, n, d))[0, 0]
    columns = []
    for start in range(0, d, n):
        units = torch.zeros(1, n, d)
        count = min(n, d - start)
        units[0, range(count), range(start, start + count)] = 1
        columns.append(function(units)[0, :count] - bias)
    return torch.cat(columns).T, bias
