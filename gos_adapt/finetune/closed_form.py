"""Least squares for the last layers of an operator: exact, fast, and the reason why minutes are enough.

From the result backwards, every instruction through which the output depends linearly on the layer below tells what
that layer should have computed (the table `_TARGETS`); the layer itself is ridge regression on its unfolded patches,
its bias included, towards the weights it has. A scale for each channel is such a layer, too, of one weight a channel.

Two layers in a row with fewer channels between them are solved together, by reduced-rank regression: the regression of
one full layer, and of its response the principal components. The best low rank of the response is not that of the
weight, because patches are far from white.

Reference: Izenman, "Reduced-rank regression for the multivariate linear model", 1975; Zhang et al., "Accelerating very
deep convolutional networks for classification and detection", 2016, section 3.1, without its nonlinear part: the
activation is cut off before.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gos_adapt.instructions.rules import as_int, as_ints
from gos_adapt.operators.graph import LAYERS, WEIGHT, Node, OperatorGraph
from gos_adapt.operators.torch_form import TorchOperator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

SOLVED = LAYERS | {"channel_scale"}
"""What a regression finds the weights of."""
RIDGE = 1e-6
"""Of the mean squared patch value; a thousand times that when there are hardly more rows than unknowns."""
MIN_ROWS = 8192
ROWS_PER_UNKNOWN = 6
CHUNK = 16
"""Samples unfolded at a time."""


class Solved(NamedTuple):
    """Weights from the closed form.

    Attributes:
        weights: In weight order.
        optimal: Whether all were solved for, and nothing else depends on what they make: no others have less error.
    """

    weights: tuple[Tensor, ...]
    optimal: bool


def solve_last_layers(
    operator: OperatorGraph, weights: Sequence[Tensor], inputs: Tensor, target: Tensor, rng: np.random.Generator
) -> Solved:
    """Find weights with which the operator's last layers reproduce `target` best in the least-squares sense.

    Args:
        operator: Ends in its pre-activation: the caller cuts the activation off.
        weights: As they are now, in weight order; not changed.
        inputs: ``(n, ...)``, what the operator reads.
        target: ``(n, ...)``, what it should write.
        rng: Draws the positions that are looked at; a large map has far more than the regression needs.
    """
    values = dict(zip(operator.weights, weights, strict=True))
    problem = _Problem(operator, values, inputs, rng)
    problem.solve(_Wanted(len(operator.nodes) - 1, target, torch.arange(target.shape[1])))
    optimal = problem.solved == set(operator.weights) and not problem.shared
    return Solved(tuple(values[i] for i in operator.weights), optimal)


@dataclass(frozen=True)
class _Wanted:
    """What a node should compute: `target`, but for a constant per channel that a free bias adds later.

    Attributes:
        node: Its index.
        target: ``(n, c, ...)``.
        channels: ``(c,)``, which channel of the free bias is added to each channel of the target.
        bias: The free bias leaf, if any.
    """

    node: int
    target: Tensor
    channels: Tensor
    bias: int | None = None

    def part(self, node: int, index: Tensor) -> _Wanted:
        """Return the wish for a node that computes some channels of this one, perhaps in another order."""
        return replace(self, node=node, target=self.target[:, index], channels=self.channels[index])

    def without(self, node: int, computed: Tensor) -> _Wanted:
        """Return the wish for a node to which `computed` will be added."""
        return replace(self, node=node, target=self.target - computed)


@dataclass(frozen=True)
class _Problem:
    operator: OperatorGraph
    weights: dict[int, Tensor]
    inputs: Tensor
    rng: np.random.Generator
    consumers: dict[int, int] = field(init=False)
    solved: set[int] = field(default_factory=set)  # weight leaves
    shared: set[int] = field(default_factory=set)  # nodes that were given a target, and that others read, too

    def __post_init__(self) -> None:
        uses = [a for node in self.operator.nodes for a in node.args]
        object.__setattr__(self, "consumers", {i: uses.count(i) for i in range(len(self.operator.nodes))})

    def solve(self, wanted: _Wanted) -> None:
        """Descend from a node and its target to the layers below it."""
        node = self.operator.nodes[wanted.node]
        if self.consumers[wanted.node] > 1:
            self.shared.add(wanted.node)
        if node.op in SOLVED and self.is_free(node.args[1]):
            self._solve_layer(wanted, node)
        elif node.op in _TARGETS:
            for below in _TARGETS[node.op](self, wanted, node):
                self.solve(below)
        elif wanted.bias is not None:
            self.set_bias(wanted, _channel_means(wanted.target - self.value(wanted.node)))

    def value(self, node: int) -> Tensor:
        """What a node computes with the weights as they are."""
        prefix = OperatorGraph(self.operator.nodes[: node + 1])
        module = TorchOperator(prefix, tuple(self.weights[i].numpy() for i in prefix.weights))
        with torch.no_grad():
            return torch.cat([module(chunk) for chunk in torch.split(self.inputs, 4 * CHUNK)])

    def solvable(self, node: int) -> int:
        """How many weights of layers `solve` would find below a node."""
        below = self.operator.nodes[node]
        if below.op in SOLVED and self.is_free(below.args[1]):
            return self.weights[below.args[1]].numel()
        if below.op not in _TARGETS:
            return 0
        return max(self.solvable(a) for a in below.args if self.operator.nodes[a].op != WEIGHT)

    def is_free(self, leaf: int) -> bool:
        """Whether a node is a weight leaf that nothing else reads."""
        return self.operator.nodes[leaf].op == WEIGHT and self.consumers[leaf] == 1

    def set_bias(self, wanted: _Wanted, value: Tensor) -> None:
        """Give the free bias, if there is one, `value` in the channels that `wanted` is about."""
        if wanted.bias is not None:
            bias = self.weights[wanted.bias].clone()
            bias[wanted.channels] = value
            self.weights[wanted.bias] = bias
            self.solved.add(wanted.bias)

    def _solve_layer(self, wanted: _Wanted, node: Node) -> None:
        layer, inner = self._layer(node), self.operator.nodes[node.args[0]]
        wanted = replace(wanted, target=_as_map(wanted.target))
        if layer == _Layer() and self._is_factor(node, inner):
            self._solve_factors(wanted, node, inner)
            return
        features, weight = _as_map(self.value(node.args[0])), self.filters(node)
        solved, bias = _regress(features, wanted.target, weight, layer, wanted.bias is not None, self.rng)
        self.set_filters(node, solved)
        self.set_bias(wanted, bias)

    def _is_factor(self, node: Node, inner: Node) -> bool:
        """Whether `inner` and the pointwise `node` after it are one dense layer of low rank in two parts."""
        if inner.op not in SOLVED or not self.is_free(inner.args[1]) or self.consumers[node.args[0]] != 1:
            return False
        return self._layer(inner).groups == 1 and len(self.filters(inner)) < len(self.filters(node))

    def _solve_factors(self, wanted: _Wanted, node: Node, inner: Node) -> None:
        layer, features = self._layer(inner), _as_map(self.value(inner.args[0]))
        mix, filters = self.filters(node)[..., 0, 0], self.filters(inner)
        whole = (mix @ filters.flatten(1)).reshape(len(mix), *filters.shape[1:])
        whole, bias = _regress(features, wanted.target, whole, layer, wanted.bias is not None, self.rng)
        mean, basis = _principal(features, whole, layer, len(filters), centred=wanted.bias is not None)
        mix, filters = _balanced(basis, (basis.T @ whole.flatten(1)).reshape(filters.shape))
        self.set_filters(node, mix[..., None, None])
        self.set_filters(inner, filters)
        self.set_bias(wanted, bias + mean - basis @ (basis.T @ mean))

    def _layer(self, node: Node) -> _Layer:
        if node.op == "cross_correlation":
            hyper = dict(node.hyper)
            kernel, stride, padding, dilation = (
                as_ints(hyper[name]) for name in ("kernel", "stride", "padding", "dilation")
            )
            return _Layer(kernel, stride, padding, dilation, as_int(hyper["groups"]))
        return _Layer(groups=len(self.filters(node)) if node.op == "channel_scale" else 1)

    def filters(self, node: Node) -> Tensor:
        """The weight of a layer as filters ``(o, c, kh, kw)``; a matrix or a scale looks at one position."""
        weight = self.weights[node.args[1]]
        if node.op == "channel_scale":
            return weight[:, None, None, None]
        return weight.T[..., None, None] if node.op == "matrix_product" else weight

    def set_filters(self, node: Node, filters: Tensor) -> None:
        """Give a layer its weight, as `filters` shows it."""
        if node.op == "channel_scale":
            filters = filters[:, 0, 0, 0]
        elif node.op == "matrix_product":
            filters = filters[..., 0, 0].T.contiguous()
        self.weights[node.args[1]] = filters
        self.solved.add(node.args[1])


@dataclass(frozen=True)
class _Layer:
    """Where a convolution looks."""

    kernel: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1

    def padded(self, features: Tensor) -> Tensor:
        """Put the zeros around maps that the windows may reach."""
        top, left, bottom, right = self.padding
        return F.pad(features, (left, right, top, bottom))


def _below_bias(problem: _Problem, wanted: _Wanted, node: Node) -> list[_Wanted]:
    feature, leaf = node.args
    if wanted.bias is None and problem.is_free(leaf):
        return [_Wanted(feature, wanted.target, torch.arange(wanted.target.shape[1]), leaf)]
    return [wanted.without(feature, problem.value(wanted.node) - problem.value(feature))]


def _below_add(problem: _Problem, wanted: _Wanted, node: Node) -> list[_Wanted]:
    fixed, solved = sorted(node.args, key=problem.solvable)
    return [wanted.without(solved, problem.value(fixed))]


def _below_concat(problem: _Problem, wanted: _Wanted, node: Node) -> list[_Wanted]:
    sizes = [problem.operator.types[a].shape[0] for a in node.args]
    parts = torch.split(torch.arange(sum(sizes)), sizes)
    return [wanted.part(a, part) for a, part in zip(node.args, parts, strict=True)]


def _below_pad(problem: _Problem, wanted: _Wanted, node: Node) -> list[_Wanted]:
    sizes = [as_int(dict(node.hyper)["before"]), problem.operator.types[node.args[0]].shape[0]]
    before, kept, after = torch.tensor_split(torch.arange(wanted.target.shape[1]), (sizes[0], sum(sizes)))
    zeros = wanted.part(node.args[0], torch.cat((before, after)))
    problem.set_bias(zeros, _channel_means(zeros.target))
    return [wanted.part(node.args[0], kept)]


def _below_shuffle(_problem: _Problem, wanted: _Wanted, node: Node) -> list[_Wanted]:
    groups = as_int(dict(node.hyper)["groups"])
    return [wanted.part(node.args[0], torch.arange(wanted.target.shape[1]).reshape(-1, groups).T.flatten())]


def _below_upsample(_problem: _Problem, wanted: _Wanted, node: Node) -> list[_Wanted]:
    factor = as_ints(dict(node.hyper)["factor"])  # one value for a block: its best target is the block's mean
    return [replace(wanted, node=node.args[0], target=F.avg_pool2d(wanted.target, factor))]


def _without_bias(problem: _Problem, wanted: _Wanted) -> Tensor:
    """The target with the free bias taken off: where channels are something else below, it cannot be solved."""
    if wanted.bias is None:
        return wanted.target
    return wanted.target - _along_channels(problem.weights[wanted.bias][wanted.channels], wanted.target)


def _below_reshape(problem: _Problem, wanted: _Wanted, node: Node) -> list[_Wanted]:
    target = _without_bias(problem, wanted)
    target = target.reshape(len(target), *problem.operator.types[node.args[0]].shape)
    return [_Wanted(node.args[0], target, torch.arange(target.shape[1]))]


def _below_transpose(problem: _Problem, wanted: _Wanted, node: Node) -> list[_Wanted]:
    target = _without_bias(problem, wanted).transpose(1, 2)
    return [_Wanted(node.args[0], target, torch.arange(target.shape[1]))]


_TARGETS: dict[str, Callable[[_Problem, _Wanted, Node], list[_Wanted]]] = {
    "channel_bias": _below_bias,
    "add": _below_add,
    "concat": _below_concat,
    "pad_channels": _below_pad,
    "channel_shuffle": _below_shuffle,
    "upsample": _below_upsample,
    "reshape": _below_reshape,
    "flatten": _below_reshape,
    "transpose": _below_transpose,
}


def _along_channels(values: Tensor, like: Tensor) -> Tensor:
    """Shape ``(c,)`` so that it broadcasts against ``(n, c, ...)``."""
    return values.reshape(-1, *(1,) * (like.ndim - 2))


def _channel_means(values: Tensor) -> Tensor:
    """Return the mean over samples and positions, ``(c,)``."""
    return values.transpose(0, 1).flatten(1).mean(dim=1)


def _regress(
    features: Tensor, target: Tensor, weight: Tensor, layer: _Layer, with_bias: bool, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Ridge regression of `target` on the patches of `features`, group by group, towards `weight`.

    Returns:
        The weight, and the bias (zeros without one).
    """
    padded = layer.padded(features)
    height, width = target.shape[2:]
    groups, unknowns = layer.groups, weight[0].numel() + with_bias
    wanted_rows = max(MIN_ROWS, ROWS_PER_UNKNOWN * unknowns)
    per_sample = min(height * width, -(-wanted_rows // len(features)))
    previous = weight.reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2)

    gram = torch.zeros(groups, unknowns, unknowns, dtype=torch.float64)
    moment = torch.zeros(groups, unknowns, weight.shape[0] // groups, dtype=torch.float64)
    for x, y in zip(torch.split(padded, CHUNK), torch.split(target, CHUNK), strict=True):
        positions = torch.from_numpy(rng.choice(height * width, per_sample, replace=False))
        patches = _patches(x, positions // width, positions % width, layer)
        wanted = y.flatten(2)[:, :, positions].transpose(0, 1).reshape(groups, previous.shape[2], -1).transpose(1, 2)
        residual = wanted - patches @ previous
        if with_bias:
            patches = torch.cat((patches, patches.new_ones(*patches.shape[:2], 1)), dim=2)
        gram += patches.transpose(1, 2) @ patches
        moment += patches.transpose(1, 2) @ residual

    rows = len(features) * per_sample
    strength = RIDGE if rows >= 2 * unknowns else 1e3 * RIDGE
    scale = gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1e-12)
    gram += strength * scale[:, None, None] * torch.eye(unknowns, dtype=torch.float64)
    change = torch.linalg.solve(gram, moment).float()
    solved = previous + change[:, : previous.shape[1]]
    bias = change[:, -1].flatten() if with_bias else weight.new_zeros(len(weight))
    return solved.transpose(1, 2).reshape(weight.shape), bias


def _principal(features: Tensor, filters: Tensor, layer: _Layer, rank: int, *, centred: bool) -> tuple[Tensor, Tensor]:
    """What a layer without bias computes: its mean ``(o,)``, and the directions ``(o, rank)`` in which it spreads most.

    The spread is about the mean, or about zero if not `centred`; the mean is then given as zero.
    """
    padded = layer.padded(features)
    total = torch.zeros(len(filters), dtype=torch.float64)
    moment = torch.zeros(len(filters), len(filters), dtype=torch.float64)
    count = 0
    for chunk in torch.split(padded, CHUNK):
        response = F.conv2d(chunk, filters, None, layer.stride, 0, layer.dilation)
        rows = response.transpose(0, 1).flatten(1).T.double()
        total += rows.sum(dim=0)
        moment += rows.T @ rows
        count += len(rows)
    mean = total / count if centred else torch.zeros_like(total)
    _, vectors = torch.linalg.eigh(moment - count * torch.outer(mean, mean))
    return mean.float(), vectors[:, -rank:].float()


def _balanced(mix: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Scale two factors ``(o, r)`` and ``(r, ...)`` to one norm in each of the r, for the training that follows."""
    root = filters.flatten(1).norm(dim=1).clamp(min=1e-12).sqrt()
    return mix * root, filters / root.reshape(-1, *(1,) * (filters.ndim - 1))


def _as_map(values: Tensor) -> Tensor:
    """Return ``(n, c, h, w)``; a vector is a map of one position, and other shapes are maps of one column."""
    return values if values.ndim == 4 else values.reshape(*values.shape[:2], -1, 1)


def _patches(padded: Tensor, rows: Tensor, columns: Tensor, layer: _Layer) -> Tensor:
    """Unfold the windows at some positions: ``(n, c, h, w)`` to ``(groups, n * positions, c / groups * kh * kw)``."""
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel, layer.stride, layer.dilation
    down = (rows * sh)[:, None, None] + dh * torch.arange(kh)[:, None]
    along = (columns * sw)[:, None, None] + dw * torch.arange(kw)
    n, c = padded.shape[:2]
    windows = padded[:, :, down, along].reshape(n, layer.groups, c // layer.groups, len(rows), kh * kw)
    return windows.permute(1, 0, 3, 2, 4).reshape(layer.groups, n * len(rows), -1)
