"""How instructions that are not element-wise appear in an equation: opaque real sympy terms that print themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sympy
from sympy.core.symbol import Str
from sympy.printing.precedence import PRECEDENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from gos_adapt.instructions.base import HyperValue

_LATEX_SIGNS = {"⋆": r"\star", "·": r"\cdot", "⊗": r"\otimes"}


class Term(sympy.Expr):  # type: ignore[misc]  # sympy is untyped
    """``symbol_label(arguments)``, or ``a symbol_label b`` when `symbol` is a sign and not a word.

    Sympy takes it for a real number it knows nothing about, which is what one element of the result is.
    """

    is_commutative = True
    is_extended_real = True
    precedence = PRECEDENCE["Add"] + 1  # products and powers put it in parentheses, sums do not

    def __new__(cls, symbol: str | Str, label: str | Str, *arguments: sympy.Expr) -> Term:
        """Build from plain strings or, as sympy's own rebuilding does, from `Str`."""
        term: Term = super().__new__(cls, Str(str(symbol)), Str(str(label)), *arguments)
        return term

    @property
    def _symbol(self) -> str:
        return str(self.args[0].name)

    @property
    def _label(self) -> str:
        return str(self.args[1].name)

    @property
    def _arguments(self) -> tuple[sympy.Expr, ...]:
        return tuple(self.args[2:])

    def _sympystr(self, printer: Any) -> str:
        mark = self._symbol + (f"_{{{self._label}}}" if self._label else "")
        if self._symbol.isalpha():
            return f"{mark}({', '.join(map(printer._print, self._arguments))})"
        return f" {mark} ".join(printer._print(a) if a.is_Atom else f"({printer._print(a)})" for a in self._arguments)

    def _latex(self, printer: Any) -> str:
        mark = _LATEX_SIGNS.get(self._symbol, rf"\operatorname{{{self._symbol}}}")
        if self._label:
            label = self._label.replace("×", r" \times ").replace("λ", r"\lambda").replace(", ", r",\,")
            mark += rf"_{{\mathrm{{{label}}}}}"
        if self._symbol.isalpha():
            return rf"{mark}\left({', '.join(map(printer._print, self._arguments))}\right)"
        printed = (printer._print(a) if a.is_Atom else rf"\left({printer._print(a)}\right)" for a in self._arguments)
        return f" {mark} ".join(printed)

    def _mathml_presentation(self, printer: Any) -> Any:
        word = self._symbol.isalpha()
        mark = _leaf(printer, "mi" if word else "mo", self._symbol)
        if self._label:
            mark = _group(printer, "msub", mark, _leaf(printer, "mtext", self._label))
        pieces = [
            printer._print(a) if word or a.is_Atom else _fenced(printer, printer._print(a)) for a in self._arguments
        ]
        separator = _leaf(printer, "mo", ",") if word else mark
        listed = [piece for a in pieces for piece in (separator.cloneNode(True), a)][1:]
        return _group(printer, "mrow", mark, _fenced(printer, *listed)) if word else _group(printer, "mrow", *listed)


def term(
    symbol: str, label: Callable[..., str] | None = None, *, order: tuple[int, ...] | None = None
) -> Callable[..., sympy.Expr]:
    """Return the equation of an instruction that is written ``symbol`` with ``label(**hyper)`` below.

    Args:
        symbol: A word for function notation, a sign for infix notation.
        label: Text of the subscript; none when absent.
        order: Positions of the arguments as written; argument order when absent.
    """

    def equation(*arguments: sympy.Expr, **hyper: HyperValue) -> sympy.Expr:
        written = arguments if order is None else tuple(arguments[i] for i in order)
        return Term(symbol, label(**hyper) if label else "", *written)

    return equation


def by(sizes: tuple[int, ...]) -> str:
    """Write sizes as ``3×3``."""
    return "×".join(map(str, sizes))


def window(kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...] = (1, 1)) -> str:
    """Write a window as ``3×3, s2, d1×2``, leaving out strides and dilations of one."""
    steps = ((letter, step) for letter, step in (("s", stride), ("d", dilation)) if set(step) != {1})
    return ", ".join(
        [by(kernel), *(letter + (str(step[0]) if len(set(step)) == 1 else by(step)) for letter, step in steps)]
    )


def _leaf(printer: Any, tag: str, text: str) -> Any:
    return _group(printer, tag, printer.dom.createTextNode(text))


def _group(printer: Any, tag: str, *children: Any) -> Any:
    element = printer.dom.createElement(tag)
    for child in children:
        element.appendChild(child)
    return element


def _fenced(printer: Any, *children: Any) -> Any:
    return _group(printer, "mrow", _leaf(printer, "mo", "("), *children, _leaf(printer, "mo", ")"))
