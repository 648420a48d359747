"""A canonical ONNX graph as a differentiable torch module."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from gos_adapt.errors import UnsupportedOperatorError
from gos_adapt.model.torch_ops import TORCH_OPS, Attributes, TorchOp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Where an initialiser is a weight. Elsewhere (bounds of Clip, stored statistics, scales of Resize, every scalar)
# training would change what the operator *is*, so it stays a constant.
_WEIGHT_ARGUMENTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "PRelu": (1,),
    "Gather": (0,),
    "Add": (0, 1),
    "Sub": (0, 1),
    "Mul": (0, 1),
    "Div": (0, 1),
}


@dataclass(frozen=True)
class _Step:
    """One node, bound to its torch function.

    Attributes:
        inputs: Tensor names; empty for an absent optional input.
        spent: Tensors that nothing after this step reads.
    """

    op: TorchOp
    attributes: Attributes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    spent: tuple[str, ...] = ()


class TorchExecutor(nn.Module):
    """Runs a canonical graph in torch: any batch size, differentiable in its inputs and weights.

    Always inference semantics (stored batch-norm statistics); `train()` changes nothing. 4-D tensors run in
    channels-last memory format. Weights are the float initialisers in weight positions; `weights` holds them by ONNX
    name, which is how to freeze some (`requires_grad_`) or to hand others to an optimiser.

    Raises:
        UnsupportedOperatorError: naming every operator without a torch form.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        super().__init__()
        unsupported = sorted({node.op_type for node in proto.graph.node} - TORCH_OPS.keys())
        if unsupported:
            raise UnsupportedOperatorError(
                f"cannot run {', '.join(unsupported)} in torch, which fitting and fine-tuning need; "
                "compile the model unchanged or export it without them"
            )
        self._proto = proto
        self._registered: dict[str, str] = {}
        weight_names = _weight_names(proto.graph)
        for i, initializer in enumerate(proto.graph.initializer):
            value = _channels_last(torch.from_numpy(numpy_helper.to_array(initializer).copy()))
            # a number in front: no clash with an attribute of Module, nor between names that differ in punctuation only
            registered = f"n{i}_{re.sub(r'[^0-9a-zA-Z]+', '_', initializer.name)}"
            self._registered[initializer.name] = registered
            if initializer.name in weight_names:
                self.register_parameter(registered, nn.Parameter(value))
            else:
                self.register_buffer(registered, value, persistent=False)
        self._steps = tuple(
            _Step(TORCH_OPS[node.op_type], _attributes(node), tuple(node.input), tuple(node.output))
            for node in proto.graph.node
        )
        self._inputs = tuple(value.name for value in proto.graph.input if value.name not in self._registered)
        self._outputs = tuple(value.name for value in proto.graph.output)
        self._plans: dict[tuple[frozenset[str], tuple[str, ...]], tuple[_Step, ...]] = {}

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The trainable initialisers by ONNX name."""
        values = {name: getattr(self, registered) for name, registered in self._registered.items()}
        return {name: value for name, value in values.items() if isinstance(value, nn.Parameter)}

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Model inputs in the model's order to its output, or a tuple of them if there are several."""
        outputs = self.compute(dict(zip(self._inputs, inputs, strict=True)), self._outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def compute(self, given: Mapping[str, Tensor], wanted: Sequence[str]) -> tuple[Tensor, ...]:
        """Compute the tensors named `wanted` from the tensors named `given`, running only the nodes that takes.

        Any tensor of the graph may be given or wanted: capture a site's input and output by wanting them; start from
        cached activations by giving them.

        Raises:
            ValueError: when a wanted tensor needs a model input that is not given.
        """
        key = (frozenset(given), tuple(wanted))
        if key not in self._plans:
            self._plans[key] = self._plan(*key)
        tensors: dict[str, Tensor | None] = {"": None}
        tensors |= {name: getattr(self, registered) for name, registered in self._registered.items()}
        tensors |= {name: _channels_last(value) for name, value in given.items()}
        for step in self._plans[key]:
            result = step.op(step.attributes, *(tensors[name] for name in step.inputs))
            tensors |= zip(step.outputs, (result,) if isinstance(result, Tensor) else result, strict=True)
            for name in step.spent:
                del tensors[name]
        return tuple(tensor for name in wanted if (tensor := tensors[name]) is not None)

    def write_back(self) -> onnx.ModelProto:
        """Return a copy of the graph that holds the weights as they are now."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        weights = self.weights
        for initializer in proto.graph.initializer:
            if initializer.name in weights:
                value = np.ascontiguousarray(weights[initializer.name].detach().cpu().numpy())
                initializer.CopyFrom(numpy_helper.from_array(value, initializer.name))
        return proto

    def _plan(self, given: frozenset[str], wanted: tuple[str, ...]) -> tuple[_Step, ...]:
        """The steps from given to wanted, each with the tensors it is the last to read."""
        known = given | self._registered.keys() | {""}
        pending = set(wanted) - known
        read = (
            set(wanted) | known
        )  # what a later step or the caller still reads; caller's and stored tensors are not ours
        plan: list[_Step] = []
        for step in reversed(self._steps):
            if pending.isdisjoint(step.outputs):
                continue
            pending -= set(step.outputs)
            pending |= set(step.inputs) - known
            unread = (set(step.inputs) | set(step.outputs)) - read
            read |= unread
            plan.append(_Step(step.op, step.attributes, step.inputs, step.outputs, tuple(sorted(unread))))
        if pending:
            raise ValueError(f"{', '.join(wanted)} cannot be computed from {sorted(given)}: {sorted(pending)} missing")
        return tuple(reversed(plan))


def _weight_names(graph: onnx.GraphProto) -> set[str]:
    """Float initialisers with at least one axis that every reader takes as a weight."""
    candidates = {
        initializer.name
        for initializer in graph.initializer
        if initializer.dims and initializer.data_type == onnx.TensorProto.FLOAT
    }
    constant_uses = {
        name
        for node in graph.node
        for position, name in enumerate(node.input)
        if position not in _WEIGHT_ARGUMENTS.get(node.op_type, ())
    }
    return candidates - constant_uses


def _attributes(node: onnx.NodeProto) -> Attributes:
    return {attribute.name: _attribute_value(attribute) for attribute in node.attribute}


def _attribute_value(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return torch.from_numpy(numpy_helper.to_array(value).copy())
    return value


def _channels_last(value: Tensor) -> Tensor:
    """Channels last, where torch's CPU convolutions are fastest, for 4-D tensors; others as they are."""
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
