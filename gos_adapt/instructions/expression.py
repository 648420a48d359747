"""Element-wise instructions given by their equation alone: one sympy expression, computed in any library.

`Program.of` writes an expression as a list of steps, each an operation on earlier values; an *algebra* says what the
operations are in one library (numpy, torch, ONNX nodes here; Relax in `tvm_passes.lower_instructions`). So whatever
sympy makes of an equation, a derivative for instance, is an instruction without a line of code of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy
import torch

from gos_adapt.errors import Rejection
from gos_adapt.instructions.base import Hyper, HyperValue, Instruction, Kind, OnnxEmitter, Shape
from gos_adapt.instructions.notation import Term
from gos_adapt.instructions.rules import Legal, same_shape, shape_rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gos_adapt.instructions.windows import Array

Algebra = Mapping[str, Callable[..., Any]]
"""Operation -> its meaning: ``constant`` of a float; ``add multiply divide maximum minimum`` of two values;
``square_root exponential tanh sigmoid magnitude sign`` of one."""
Equation = Callable[..., sympy.Expr]

SYMBOLS = sympy.symbols("x_0:4", real=True)
"""Stand for the arguments of an instruction, in order."""


class sigmoid(sympy.Function):  # type: ignore[misc]  # noqa: N801  (sympy's functions are written like this)
    """``1 / (1 + exp(-x))`` as one function: its derivative ``sigmoid(x) sigmoid(-x)`` overflows nowhere."""

    is_positive = True
    nargs = 1

    def fdiff(self, _argument: int = 1) -> sympy.Expr:
        """Differentiate."""
        (x,) = self.args
        return sigmoid(x) * sigmoid(-x)


NUMPY: Algebra = {
    "constant": float,
    "add": np.add,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "square_root": np.sqrt,
    "exponential": np.exp,
    "tanh": np.tanh,
    "sigmoid": lambda x: (np.tanh(x * 0.5) + 1) * 0.5,  # no overflow at either end
    "magnitude": np.abs,
    "sign": np.sign,
}
TORCH: Algebra = {
    "constant": torch.tensor,
    "add": torch.add,
    "multiply": torch.mul,
    "divide": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "square_root": torch.sqrt,
    "exponential": torch.exp,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "magnitude": torch.abs,
    "sign": torch.sign,
}
ONNX_NODES = {
    "add": "Add",
    "multiply": "Mul",
    "divide": "Div",
    "maximum": "Max",
    "minimum": "Min",
    "square_root": "Sqrt",
    "exponential": "Exp",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "magnitude": "Abs",
    "sign": "Sign",
}


@dataclass(frozen=True)
class Program:
    """An expression as steps; equal sub-expressions are computed once.

    Attributes:
        steps: (operation, operands): operands are positions among the arguments and the results of earlier steps; the
            operand of ``constant`` is its value.
        result: Position of the result.
    """

    steps: tuple[tuple[str, tuple[Any, ...]], ...]
    result: int

    @classmethod
    def of(cls, expression: sympy.Expr, symbols: Sequence[sympy.Symbol]) -> Program:
        """Write `expression` of `symbols`, the arguments.

        Raises:
            ValueError: it holds something that no algebra has, such as a `Term`.
        """
        compiler = _Compiler(symbols)
        result = compiler.place(expression)
        return cls(tuple(compiler.steps), result)

    def run(self, algebra: Algebra, arguments: Sequence[Any]) -> Any:
        """Compute it."""
        values = list(arguments)
        for operation, operands in self.steps:
            words = operands if operation == "constant" else [values[i] for i in operands]
            values.append(algebra[operation](*words))
        return values[self.result]


class _Compiler:
    def __init__(self, symbols: Sequence[sympy.Symbol]) -> None:
        self.steps: list[tuple[str, tuple[Any, ...]]] = []
        self._count = len(symbols)
        self._known: dict[sympy.Expr, int] = {symbol: i for i, symbol in enumerate(symbols)}

    def place(self, expression: sympy.Expr) -> int:
        if expression not in self._known:
            self._known[expression] = self._computed(expression)
        return self._known[expression]

    def _computed(self, expression: sympy.Expr) -> int:
        if expression.is_number:
            return self._step("constant", float(expression))
        match expression:
            case sympy.Add():
                return self._joined("add", expression.args)
            case sympy.Max():
                return self._joined("maximum", expression.args)
            case sympy.Min():
                return self._joined("minimum", expression.args)
            case sympy.Pow() if not expression.exp.is_negative:
                return self._power(expression)
            case sympy.Mul() | sympy.Pow():
                return self._product(expression)
            case sympy.Heaviside():  # one half at the step: the two partial derivatives of a maximum sum to one
                return self.place((1 + sympy.sign(expression.args[0])) / 2)
        if type(expression) not in _FUNCTIONS:
            raise ValueError(f"cannot be computed element by element: {expression}")
        return self._step(_FUNCTIONS[type(expression)], self.place(expression.args[0]))

    def _product(self, expression: sympy.Expr) -> int:
        """Coefficient and what is above the line, over what is below (to `sympy.fraction`, exp(-x) would be below)."""
        coefficient, rest = expression.as_independent(*expression.free_symbols, as_Add=False)
        factors = sympy.Mul.make_args(rest)
        below = [factor for factor in factors if isinstance(factor, sympy.Pow) and factor.exp.is_negative]
        above = [factor for factor in factors if factor not in below]
        if coefficient != 1 or not above:
            above = [coefficient, *above]
        product = self._joined("multiply", above)
        return self._step("divide", product, self._joined("multiply", [1 / f for f in below])) if below else product

    def _power(self, expression: sympy.Pow) -> int:
        base, exponent = expression.args
        if exponent == sympy.Rational(1, 2):
            return self._step("square_root", self.place(base))
        if not (exponent.is_Integer and exponent > 1):
            raise ValueError(f"only whole powers and square roots, got {expression}")
        half = self.place(base ** (exponent // 2))
        square = self._step("multiply", half, half)
        return self._step("multiply", square, self.place(base)) if exponent % 2 else square

    def _joined(self, operation: str, parts: Sequence[sympy.Expr]) -> int:
        return reduce(lambda left, right: self._step(operation, left, right), map(self.place, parts))

    def _step(self, operation: str, *operands: float) -> int:
        self.steps.append((operation, operands))
        return self._count + len(self.steps) - 1


_FUNCTIONS = {
    sympy.exp: "exponential",
    sympy.tanh: "tanh",
    sigmoid: "sigmoid",
    sympy.Abs: "magnitude",
    sympy.sign: "sign",
}


def elementwise(
    name: str,
    arguments: tuple[Kind, ...],
    equation: Equation,
    *,
    settings: Mapping[str, Legal] | None = None,
    hyperparameters: Mapping[str, tuple[HyperValue, ...]] | None = None,
    initial: tuple[float, ...] = (),
    commutative: bool = False,
    aggregation: bool = False,
) -> Instruction:
    """Return the row of an element-wise instruction; every form of it is its equation.

    Args:
        name: Of the instruction.
        arguments: Features of one shape, then weights with one number a channel.
        equation: As in `Instruction`; it depends on some argument.
        settings: What its hyperparameters may be.
        hyperparameters: As in `Instruction`, as are the others.
        initial: Where its weights start.
        commutative: Whether the order of the arguments does not matter.
        aggregation: Whether it joins features.
    """
    features = arguments.count(Kind.FEATURE)

    @cache
    def program(**hyper: HyperValue) -> Program:
        symbols = SYMBOLS[: len(arguments)]
        return Program.of(equation(*symbols, **hyper), symbols)

    def shape(*shapes: Shape, **_hyper: HyperValue) -> Shape | Rejection:
        channels = (shapes[0][0],)
        wrong = [shape for shape in shapes[features:] if shape != channels]
        return Rejection(f"weights must be {channels}, got {wrong[0]}") if wrong else same_shape(*shapes[:features])

    def in_numpy(*values: Array, **hyper: HyperValue) -> Array:
        result: Array = program(**hyper).run(NUMPY, broadcast(values))
        return result

    def in_torch(*values: torch.Tensor, **hyper: HyperValue) -> torch.Tensor:
        weights = (weight.to(values[0].dtype) for weight in values[features:])  # which may be bfloat16, and stays it
        result: torch.Tensor = program(**hyper).run(TORCH, broadcast((*values[:features], *weights)))
        return result

    def broadcast(values: tuple[Any, ...]) -> tuple[Any, ...]:
        along = (-1,) + (1,) * (values[0].ndim - 2)
        return (*values[:features], *(weight.reshape(along) for weight in values[features:]))

    def in_onnx(emitter: OnnxEmitter, names: tuple[str, ...], shapes: tuple[Shape, ...], hyper: Hyper) -> str:
        along = np.array([-1] + [1] * (len(shapes[0]) - 1), np.int64)
        weights = names[features:]
        if len(along) > 1:
            weights = tuple(emitter.node("Reshape", [weight, emitter.constant(along)]) for weight in weights)
        result: str = program(**hyper).run(_onnx(emitter), (*names[:features], *weights))
        return result

    def macs(_arguments: tuple[Shape, ...], result: Shape, hyper: Hyper) -> int:
        operations = sum(operation != "constant" for operation, _ in program(**hyper).steps)
        return (operations * int(np.prod(result)) + 1) // 2

    return Instruction(
        name=name,
        arguments=arguments,
        infer=shape_rule(shape, *(None if kind is Kind.FEATURE else 1 for kind in arguments), **(settings or {})),
        numpy=in_numpy,
        torch=in_torch,
        onnx=in_onnx,
        equation=equation,
        hyperparameters=hyperparameters or {},
        weight_shapes=lambda shapes, _hyper: ((shapes[0][0],),) * (len(arguments) - features),
        initial=initial,
        macs=macs,
        commutative=commutative,
        aggregation=aggregation,
    )


def _onnx(emitter: OnnxEmitter) -> Algebra:
    def node(op_type: str) -> Callable[..., str]:
        return lambda *names: emitter.node(op_type, list(names))

    nodes = {operation: node(op_type) for operation, op_type in ONNX_NODES.items()}
    return nodes | {"constant": lambda value: emitter.constant(np.array(value, np.float32))}


def function_of(row: Instruction) -> sympy.Expr | None:
    """Return what a row computes from `SYMBOLS`; `None` if it is not element-wise or takes weights or settings."""
    features = row.arguments.count(Kind.FEATURE)
    takes_nothing_else = features == len(row.arguments) and not row.hyperparameters
    if not takes_nothing_else or isinstance(row.infer(((1,),) * features, {}), Rejection):
        return None
    expression = row.equation(*SYMBOLS[:features])
    return None if expression.has(Term) else expression
