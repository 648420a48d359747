"""An operator as a torch module, its weights trainable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from gos_adapt.instructions import INSTRUCTIONS
from gos_adapt.operators.evaluate import check_weights
from gos_adapt.operators.graph import LEAVES, OperatorGraph, convolution_biases

if TYPE_CHECKING:
    from collections.abc import Sequence

    Array = np.ndarray[Any, Any]


class TorchOperator(nn.Module):
    """The operator on batch-first tensors; `parameters()` are its weights, in node order.

    Instructions on weights alone run in every forward pass: gradients reach the leaves.

    Raises:
        ValueError: when `weights` do not have the shapes the operator expects.
    """

    def __init__(self, graph: OperatorGraph, weights: Sequence[Array]) -> None:
        super().__init__()
        check_weights(graph, weights)
        self.graph = graph
        self._biases = convolution_biases(graph)
        self.leaves = nn.ParameterList(_channels_last(torch.tensor(np.asarray(array, np.float32))) for array in weights)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Compute the result ``(n, *output_shape)`` from one tensor ``(n, *shape)`` for each input leaf."""
        values: dict[int, torch.Tensor] = dict(zip(self.graph.inputs, inputs, strict=True))
        values |= zip(self.graph.weights, self.leaves, strict=True)
        for i, node in enumerate(self.graph.nodes):
            if i in self._biases.values():
                values[i] = values[node.args[0]]
            elif node.op not in LEAVES:
                hyper: dict[str, Any] = dict(node.hyper)
                if i in self._biases:
                    hyper["bias"] = values[self.graph.nodes[self._biases[i]].args[1]]
                values[i] = INSTRUCTIONS[node.op].torch(*(values[a] for a in node.args), **hyper)
        return values[len(self.graph.nodes) - 1]

    def weights(self) -> tuple[Array, ...]:
        """Return copies of the weights as numpy arrays, in node order."""
        return tuple(leaf.detach().cpu().numpy().copy() for leaf in self.leaves)


def _channels_last(leaf: torch.Tensor) -> torch.Tensor:
    """Filters in the memory order in which torch's CPU convolutions are fastest; everything else as it is."""
    return leaf.contiguous(memory_format=torch.channels_last) if leaf.dim() == 4 else leaf
