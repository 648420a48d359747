"""What an instruction is: one row of the instruction table.

A value in an operator is a *feature* (depends on the model's input, computed at inference; it has a leading batch axis
that the types leave out) or a *weight* (known at compile time, no batch axis). Shapes are tuples of ints: a 2-D feature
map is ``(c, h, w)``, a vector feature ``(k,)``.

Reference: thesis, table 4.3. Typing values feature/weight is our addition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import sympy
    import torch

    from gos_adapt.errors import Rejection

Shape = tuple[int, ...]
HyperValue = int | float | str | tuple[int, ...]
"""A string is a word: letters, digits and underscores."""
Hyper = Mapping[str, HyperValue]


class Kind(Enum):
    """Whether a value is known when the operator is compiled."""

    FEATURE = "feature"
    WEIGHT = "weight"


@dataclass(frozen=True)
class ValueType:
    """Kind and shape of one value (features: without the batch axis)."""

    kind: Kind
    shape: Shape


class OnnxEmitter(Protocol):
    """What an instruction's ONNX form may do: add nodes and small integer or float initialisers.

    Attributes:
        nodes: Those added so far.
    """

    nodes: list[onnx.NodeProto]

    def node(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        """Append a node with one output; return that output's name."""

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        """Add an initialiser; return its name."""


def _no_weights(_features: tuple[Shape, ...], _hyper: Hyper) -> tuple[Shape, ...]:
    return ()


def _no_macs(_arguments: tuple[Shape, ...], _result: Shape, _hyper: Hyper) -> int:
    return 0


@dataclass(frozen=True)
class Instruction:
    """One row of the instruction table.

    Raises:
        ValueError: when a feature has no ONNX form, or a weight has one.

    Attributes:
        name: The word in text forms; unique.
        arguments: Kinds of the arguments, features before weights; none for a constant.
        infer: Shape rule: argument shapes (in argument order) and hyperparameters to the result's shape, or a
            `Rejection` saying what does not fit. It must be total: any shapes, any hyperparameters.
        numpy: Meaning. Called as ``numpy(*arguments, **hyper)``, features with batch axis.
        torch: The same on torch tensors, differentiable where the mathematics is.
        onnx: The same as ONNX nodes: emitter, argument names, argument shapes (features without batch), hyperparameters
            -> name of the result. Works for any batch size. `None` exactly where the result is a weight: it is folded
            (`operators.evaluate.fold`) before any form for inference is written.
        equation: One element of the result as a sympy expression, called as ``equation(*arguments, **hyper)`` with one
            real sympy expression for an element of each argument; what is not element-wise is a `notation.term`.
        hyperparameters: Legal values of each hyperparameter that mutation may set ("values known from the literature");
            an operator read from a model may hold others that `infer` accepts, and one that is not listed here (a
            target shape) follows from its surroundings.
        weight_shapes: Shapes the weight arguments must have, from the *feature* shapes and hyperparameters. Empty for
            instructions on weights alone, which take any weights that `infer` accepts.
        initial: Where each weight argument starts, all its numbers alike, when nothing is known; zeros when empty. For
            those with one number a channel.
        macs: Multiply-accumulates for one sample (a multiply or an add alone counts as one half, rounded up; data
            movement, and what is folded, as none).
        commutative: Whether the order of the arguments does not matter.
        aggregation: Whether it joins features (thesis 4.3.3, "change the aggregation function").
    """

    name: str
    arguments: tuple[Kind, ...]
    infer: Callable[[tuple[Shape, ...], Hyper], Shape | Rejection]
    numpy: Callable[..., np.ndarray[Any, Any]]
    torch: Callable[..., torch.Tensor]
    equation: Callable[..., sympy.Expr]
    onnx: Callable[[OnnxEmitter, tuple[str, ...], tuple[Shape, ...], Hyper], str] | None = None
    hyperparameters: Mapping[str, tuple[HyperValue, ...]] = field(default_factory=dict)
    weight_shapes: Callable[[tuple[Shape, ...], Hyper], tuple[Shape, ...]] = _no_weights
    initial: tuple[float, ...] = ()
    macs: Callable[[tuple[Shape, ...], Shape, Hyper], int] = _no_macs
    commutative: bool = False
    aggregation: bool = False

    def __post_init__(self) -> None:
        if (self.onnx is None) != (self.result is Kind.WEIGHT):
            raise ValueError(f"{self.name}: an ONNX form belongs to a result that is a feature, and only there")

    @property
    def result(self) -> Kind:
        """A result is a weight exactly when every argument is."""
        return Kind.FEATURE if Kind.FEATURE in self.arguments else Kind.WEIGHT
