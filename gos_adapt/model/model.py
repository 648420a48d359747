"""The model as every later stage sees it, and the places in it that can be replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from gos_adapt.instructions.base import Shape
    from gos_adapt.operators.graph import OperatorGraph

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and numpy dtype name of a model input or output.

    Attributes:
        shape: One entry per axis; a string names a dynamic axis (only the first, the batch, may be one).
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def at_batch(self, batch: int) -> tuple[int, ...]:
        """Return the shape with the dynamic batch axis set to `batch`."""
        return tuple(batch if isinstance(size, str) else size for size in self.shape)


@dataclass(frozen=True)
class Model:
    """A canonical ONNX model: one file's worth of fp32 graph, every tensor's shape inferred, constants folded.

    Attributes:
        name: Short name for files and reports (the file's stem).
        proto: The canonical graph: opset >= 17, initialisers apart from inputs, batch-norm folded into convolutions,
            no Constant, Identity or Dropout nodes; nodes in topological order; all weights inside. Never mutated.
        original: The model as given, weights inside: what baselines run and what the TVM pass is applied to.
        inputs: In the model's order.
        outputs: In the model's order.
    """

    name: str
    proto: onnx.ModelProto
    original: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @cached_property
    def key(self) -> str:
        """Content hash of the original."""
        return sha256(self.original.SerializeToString(deterministic=True)).hexdigest()[:16]


@dataclass(frozen=True)
class Site:
    """One replaceable place: connected nodes with one feature input and one output.

    Attributes:
        name: The output tensor's name; unique and stable across splices elsewhere in the model.
        kind: What a person would call it: ``"conv"``, ``"depthwise"``, ``"linear"``, ``"branch"`` ...
        nodes: Output names of the ONNX nodes it covers, in topological order.
        input: Name of the feature tensor it reads.
        output: Name of the tensor it writes.
        operator: What it computes now, canonical.
        weights: The weight leaves' values, in the operator's order.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    input: str
    output: str
    operator: OperatorGraph
    weights: tuple[Array, ...]

    @property
    def input_shape(self) -> Shape:
        """Shape of the feature it reads, without batch."""
        return self.operator.types[self.operator.inputs[0]].shape

    @property
    def output_shape(self) -> Shape:
        """Shape of the feature it writes, without batch."""
        return self.operator.output_shape

    @property
    def likeness(self) -> str:
        """Sites of equal likeness compute the same operator, each with its own weights (thesis, algorithm 4: N_o)."""
        return f"{self.kind}:{self.operator.key}"


@dataclass(frozen=True)
class Replacement:
    """A site's new operator with its weights.

    Attributes:
        site: `Site.name`.
        operator: Canonical; same input and output shape as the site's.
        weights: In the operator's weight order.
        lineage: How it came to be, oldest first ("seed low_rank", "mutate channels 16->8", "crossover with ...");
            empty for the site's own operator with weights that were trained further.
    """

    site: str
    operator: OperatorGraph
    weights: tuple[Array, ...]
    lineage: tuple[str, ...] = ()

    @property
    def retrained(self) -> bool:
        """Whether only the weights are new."""
        return not self.lineage


Replacements = Sequence[Replacement]
