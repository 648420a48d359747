"""The equation of an operator, for people: real sympy expressions, element-wise parts simplified by sympy.

What is used twice gets a name and a line of its own, so an equation is never longer than its operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import unescape
from typing import TYPE_CHECKING, Any

import sympy

from gos_adapt.instructions import INSTRUCTIONS
from gos_adapt.operators.graph import INPUT, LEAVES, OperatorGraph

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Equation:
    """One equation in three notations.

    Attributes:
        text: One line a definition, the last one ``y = ...``.
        latex: An ``aligned`` environment.
        mathml: A ``math`` element (presentation MathML).
    """

    text: str
    latex: str
    mathml: str


def equation(graph: OperatorGraph) -> Equation:
    """Return the equation of `graph`: inputs are x, weights W (matrices, filters) and b (vectors), the result y."""
    lines = definitions(graph)
    text = "\n".join(f"{name} = {sympy.sstr(value)}" for name, value in lines)
    rows = r" \\ ".join(f"{sympy.latex(name)} &= {sympy.latex(value)}" for name, value in lines)
    cells = "".join(
        f"<mtr><mtd>{_mathml(name)}</mtd><mtd><mo>=</mo></mtd><mtd>{_mathml(value)}</mtd></mtr>"
        for name, value in lines
    )
    return Equation(
        text,
        rf"\begin{{aligned}} {rows} \end{{aligned}}",
        f'<math xmlns="http://www.w3.org/1998/Math/MathML" display="block"><mtable>{cells}</mtable></math>',
    )


def definitions(graph: OperatorGraph) -> tuple[tuple[sympy.Symbol, sympy.Expr], ...]:
    """Return (name, expression) lines in the order they are computed; the last defines y."""
    uses = [0] * len(graph.nodes)
    for node in graph.nodes:
        for a in node.args:
            uses[a] += 1
    named = _leaf_names(graph)
    lines: list[tuple[sympy.Symbol, sympy.Expr]] = []
    values: list[sympy.Expr] = []
    for i, node in enumerate(graph.nodes):
        if node.op in LEAVES:
            values.append(named[i])
            continue
        value = INSTRUCTIONS[node.op].equation(*(values[a] for a in node.args), **dict(node.hyper))
        if uses[i] > 1 and not value.is_Atom:
            lines.append((_symbol(f"h_{len(lines) + 1}"), value))
            value = lines[-1][0]
        values.append(value)
    return (*lines, (_symbol("y"), values[-1]))


def _leaf_names(graph: OperatorGraph) -> dict[int, sympy.Symbol]:
    """Number leaves of one letter from 1; a letter used once stands alone."""
    letters = {
        i: "x" if node.op == INPUT else "W" if len(node.shape) > 1 else "b"
        for i, node in enumerate(graph.nodes)
        if node.op in LEAVES
    }
    seen: dict[str, int] = {}
    names: dict[int, sympy.Symbol] = {}
    for i, letter in letters.items():
        seen[letter] = seen.get(letter, 0) + 1
        alone = list(letters.values()).count(letter) == 1
        names[i] = _symbol(letter if alone else f"{letter}_{seen[letter]}")
    return names


def _symbol(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, real=True)


def _mathml(expression: sympy.Expr) -> str:
    write: Callable[..., Any] = sympy.mathml
    return unescape(write(expression, printer="presentation"))  # MathML's own entities: XML readers do not know them
