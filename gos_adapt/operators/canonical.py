"""The canonical form: one text for all operators that are the same computation written differently.

1. *Simplify*, bottom up: each node is rewritten by the table `RULES` until none applies; a node equal to an earlier
   one is that earlier one. What nobody uses is left behind.
2. *Order*: inputs first, then post-order from the result. The arguments of a commutative instruction are sorted by
   their structure; where that leaves a tie (equal structure, different weights), every order is tried and the smallest
   form wins, so isomorphic operators give the same text.
3. *Absorb*: weights take up the scales and biases beside them (`operators.absorb`), and what is left is simplified and
   ordered again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import product
from operator import add, mul
from typing import TYPE_CHECKING

from gos_adapt.errors import Rejection
from gos_adapt.instructions import INSTRUCTIONS
from gos_adapt.instructions.calculus import FUNCTIONS, X
from gos_adapt.instructions.rules import as_int, as_ints
from gos_adapt.instructions.schedule_hints import HINTS
from gos_adapt.operators.absorb import absorb
from gos_adapt.operators.graph import INPUT, LAYERS, LEAVES, WEIGHT, Node, OperatorGraph

if TYPE_CHECKING:
    from gos_adapt.instructions.base import HyperValue, Shape
    from gos_adapt.operators.absorb import Array


@dataclass(frozen=True)
class Canonical:
    """A canonical operator and where its weights come from.

    Attributes:
        graph: Same meaning, inputs and output as the operator it was made from.
        weights: Its weights from those of that operator.
    """

    graph: OperatorGraph
    weights: Callable[[Sequence[Array]], tuple[Array, ...]]


def canonicalise(graph: OperatorGraph) -> Canonical:
    """Return the canonical form; equal up to float rounding wherever no value is infinite or not a number."""
    form = _ordered(graph)
    absorbed = absorb(form.graph)
    if absorbed is None:
        return form
    rest = canonicalise(absorbed.graph)
    return Canonical(rest.graph, lambda weights: rest.weights(absorbed.weights(form.weights(weights))))


def _ordered(graph: OperatorGraph) -> Canonical:
    draft, result = _simplified(graph)
    orders = (_post_order(arguments, draft.inputs, result) for arguments in _argument_orders(draft, result))
    nodes, order = min(((_renumbered(draft, order), order) for order in orders), key=lambda form: repr(form[0]))
    kept = [draft.weight_positions[i] for i in order if draft.nodes[i].op == WEIGHT]
    return Canonical(OperatorGraph(nodes), lambda weights: tuple(weights[i] for i in kept))


# 1. Simplify


class _Draft:
    """Simplified nodes so far; equal instructions share one index, weight leaves are all different."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.shapes: list[Shape] = []
        self.weight_positions: dict[int, int] = {}
        self._known: dict[Node, int] = {}

    def leaf(self, node: Node) -> int:
        if node.op == WEIGHT:
            self.weight_positions[len(self.nodes)] = len(self.weight_positions)
        return self.append(node)

    def instruction(self, node: Node) -> int:
        for rule in RULES if node.args else ():  # a constant is as simple as it can be
            rewritten = rule(self, node)
            if isinstance(rewritten, Node):
                return self.instruction(rewritten)
            if rewritten is not None:
                return rewritten
        if INSTRUCTIONS[node.op].commutative:
            node = Node(node.op, tuple(sorted(node.args)), node.hyper)
        if node not in self._known:
            self._known[node] = self.append(node)
        return self._known[node]

    def append(self, node: Node) -> int:
        self.nodes.append(node)
        self.shapes.append(node.shape or self.shape_of(node))
        return len(self.nodes) - 1

    @property
    def inputs(self) -> tuple[int, ...]:
        return tuple(i for i, node in enumerate(self.nodes) if node.op == INPUT)

    def shape_of(self, node: Node) -> Shape:
        shape = INSTRUCTIONS[node.op].infer(tuple(self.shapes[a] for a in node.args), dict(node.hyper))
        assert isinstance(shape, tuple), shape
        return shape

    def op(self, index: int) -> str:
        return self.nodes[index].op

    def zero(self, shape: Shape) -> Node:
        """Zeros depend on no value: all are written as a function of the first input."""
        return _make("zero", self.inputs[0], shape=shape)


def _simplified(graph: OperatorGraph) -> tuple[_Draft, int]:
    """Rewrite bottom up; inputs come first and stay even if unused; the result is an instruction, if only identity."""
    draft = _Draft()
    position: dict[int, int] = {i: draft.leaf(graph.nodes[i]) for i in graph.inputs}
    for i, node in enumerate(graph.nodes):
        if node.op == WEIGHT:
            position[i] = draft.leaf(node)
        elif node.op != INPUT:
            position[i] = draft.instruction(Node(node.op, tuple(position[a] for a in node.args), node.hyper))
    result = position[len(graph.nodes) - 1]
    return draft, draft.append(_make("identity", result)) if draft.op(result) == INPUT else result


def _make(op: str, *args: int, **hyper: HyperValue) -> Node:
    return Node(op, args, tuple(sorted(hyper.items())))


Rule = Callable[[_Draft, Node], Node | int | None]

NOT_NEGATIVE = {*(name for name, function in FUNCTIONS.items() if function.is_nonnegative), "softmax", "bayes_rule"}
WITHIN_0_6 = NOT_NEGATIVE - {"relu", "square_root"}
UNCHANGED = {"relu": NOT_NEGATIVE, "leaky_relu": NOT_NEGATIVE, "relu6": WITHIN_0_6}
"""Outer instruction -> inner ones whose results it leaves as they are."""
MOVES = {"reshape", "weight_reshape", "flatten", "channel_slice", "pad_channels", "subsample", "upsample"}
"""Move elements, and move none exactly when the shape stays."""
ZERO_PRESERVING = MOVES | {
    *(name for name, function in FUNCTIONS.items() if function.subs(X, 0) == 0),
    *("leaky_relu", "max_pool", "average_pool", "global_average_pool"),
    *("shift", "unfold", "channel_shuffle", "channel_scale", "scale", *LAYERS),
    *("vector_norm", "frobenius_norm", "gradient", "power", "bayes_rule"),
    *("sum_along", "mean_along", "maximum_along", "minimum_along"),
}
"""Zeros in the first argument give zeros."""
PRODUCTS = {"hadamard", "divide", "dot_product", "outer_product", "matrix_vector_product"}
"""Zeros in either argument give zeros."""


def _settle_hint(draft: _Draft, node: Node) -> Node | int | None:
    """Drop a hint on what is no layer; of two on one knob the outer wins; tile comes before unroll."""
    if node.op not in HINTS:
        return None
    inner = draft.nodes[node.args[0]]
    if inner.op not in {*LAYERS, *HINTS}:
        return node.args[0]
    if inner.op == node.op:
        return Node(node.op, inner.args, node.hyper)
    if inner.op in HINTS and inner.op > node.op:
        return Node(inner.op, (draft.instruction(Node(node.op, inner.args, node.hyper)),), inner.hyper)
    return None


def _drop_identity(_draft: _Draft, node: Node) -> int | None:
    """Rewrite identity(a) -> a."""
    return node.args[0] if node.op == "identity" else None


def _drop_unchanging(draft: _Draft, node: Node) -> int | None:
    """Rewrite relu(relu(a)) -> relu(a), relu6(sigmoid(a)) -> sigmoid(a) ..."""
    return node.args[0] if draft.op(node.args[0]) in UNCHANGED.get(node.op, ()) else None


def _drop_idle_move(draft: _Draft, node: Node) -> int | None:
    """Rewrite reshape(a) to its own shape, shift by nothing, shuffle of one group ... -> a."""
    shape, hyper = draft.shapes[node.args[0]], dict(node.hyper)
    idle = (
        (node.op in MOVES and draft.shape_of(node) == shape)
        or (node.op == "shift" and hyper["offset"] == (0, 0))
        or (node.op == "channel_shuffle" and hyper["groups"] in (1, shape[0]))
        or (node.op == "weight_transpose" and hyper["axes"] == tuple(range(len(shape))))
    )
    return node.args[0] if idle else None


def _compose(draft: _Draft, node: Node) -> Node | None:
    """Rewrite f(g(a)) -> h(a) where sympy sees that the table has such an h: relu6(relu(a)) -> relu6(a) ..."""
    inner = draft.nodes[node.args[0]]
    composed = _composed(node.op, inner.op) if node.op in FUNCTIONS and inner.op in FUNCTIONS else None
    return None if composed is None else _make(composed, *inner.args)


@cache
def _composed(outer: str, inner: str) -> str | None:
    function = FUNCTIONS[outer].xreplace({X: FUNCTIONS[inner]})
    return next((name for name, other in FUNCTIONS.items() if other == function), None)


def _merge_reshapes(draft: _Draft, node: Node) -> Node | None:
    """Rewrite reshape(reshape(a)) -> reshape(a), and reshape to a vector -> flatten."""
    if node.op == "reshape" and len(draft.shape_of(node)) == 1:
        return _make("flatten", *node.args)
    inner = draft.op(node.args[0])
    if {node.op, inner} <= {"reshape", "flatten"} or node.op == inner == "weight_reshape":
        return Node(node.op, draft.nodes[node.args[0]].args, node.hyper)
    return None


def _each(join: Callable[[int, int], int], inner: HyperValue, outer: HyperValue) -> tuple[int, ...]:
    return tuple(map(join, as_ints(inner), as_ints(outer)))


def _merged(op: str, inner: Mapping[str, HyperValue], outer: Mapping[str, HyperValue]) -> dict[str, HyperValue] | None:
    """Settings with which `op` does at once what it does in two steps, where there are any."""
    match op:
        case "channel_slice":
            return {name: as_int(inner["start"]) + as_int(value) for name, value in outer.items()}
        case "pad_channels":
            return {name: as_int(inner[name]) + as_int(value) for name, value in outer.items()}
        case "subsample" | "upsample":
            return {name: _each(mul, inner[name], value) for name, value in outer.items()}
        # not there and back: what left the map does not come back
        case "shift" if min(_each(mul, inner["offset"], outer["offset"])) >= 0:
            return {"offset": _each(add, inner["offset"], outer["offset"])}
    return None


def _merge_moves(draft: _Draft, node: Node) -> Node | None:
    """Rewrite slice(slice(a)), pad(pad(a)), subsample(subsample(a)) ... -> one of them."""
    inner = draft.nodes[node.args[0]]
    hyper = _merged(node.op, dict(inner.hyper), dict(node.hyper)) if inner.op == node.op else None
    if hyper is None:
        return None
    legal = INSTRUCTIONS[node.op].infer((draft.shapes[inner.args[0]],), hyper)
    return None if isinstance(legal, Rejection) else _make(node.op, *inner.args, **hyper)


def _transpose_back(draft: _Draft, node: Node) -> int | None:
    """Rewrite transpose(transpose(a)) -> a."""
    inner = draft.nodes[node.args[0]]
    return inner.args[0] if node.op == inner.op == "transpose" else None


def _join_slices(draft: _Draft, node: Node) -> Node | None:
    """Rewrite concat(a[i:j], a[j:k]) -> a[i:k]."""
    if node.op != "concat":
        return None
    first, second = (draft.nodes[a] for a in node.args)
    if not first.op == second.op == "channel_slice" or first.args != second.args:
        return None
    before, behind = dict(first.hyper), dict(second.hyper)
    if before["stop"] != behind["start"]:
        return None
    return _make("channel_slice", *first.args, start=before["start"], stop=behind["stop"])


def _single_element_window(_draft: _Draft, node: Node) -> Node | None:
    """Rewrite a pool or unfold over 1×1 windows -> subsample."""
    hyper = dict(node.hyper)
    alone = node.op in ("max_pool", "average_pool", "unfold") and hyper["kernel"] == (1, 1)
    if alone and hyper["padding"] == (0, 0, 0, 0):
        return _make("subsample", *node.args, stride=hyper["stride"])
    return None


def _settle_dilation(_draft: _Draft, node: Node) -> Node | None:
    """Rewrite the dilation of a window of one element, along each axis, -> 1."""
    hyper = dict(node.hyper)
    if "dilation" not in hyper:
        return None
    sides = zip(as_ints(hyper["kernel"]), as_ints(hyper["dilation"]), strict=True)
    settled = tuple(dilation if side > 1 else 1 for side, dilation in sides)
    return None if settled == hyper["dilation"] else _make(node.op, *node.args, **(hyper | {"dilation": settled}))


def _join_with_itself(draft: _Draft, node: Node) -> Node | int | None:
    """Rewrite maximum(a, a), minimum(a, a), mean(a, a), weighted_mean(a, a, w) -> a, and a - a -> zero."""
    if len(node.args) < 2 or node.args[0] != node.args[1]:
        return None
    if node.op == "subtract":
        return draft.zero(draft.shape_of(node))
    return node.args[0] if node.op in ("maximum", "minimum", "mean", "weighted_mean") else None


def _spread_zero(draft: _Draft, node: Node) -> Node | None:
    """Rewrite f(zero) -> zero for every f that keeps zeros, and zero(a) -> zero(first input)."""
    zero = draft.zero(draft.shape_of(node)) if node.op == "zero" or node.op in ZERO_PRESERVING else None
    return zero if zero != node and (node.op == "zero" or draft.op(node.args[0]) == "zero") else None


def _join_with_zero(draft: _Draft, node: Node) -> Node | int | None:
    """Rewrite a + 0, a - 0 -> a; a ∘ 0, a · 0 ... -> 0; max(a, 0) -> relu(a); concat(a, 0) -> pad_channels(a)."""
    if len(node.args) != 2:
        return None
    first, second = node.args
    if node.op in PRODUCTS and "zero" in (draft.op(first), draft.op(second)):
        return draft.zero(draft.shape_of(node))
    if draft.op(second) == "zero":
        other, pad = first, {"before": 0, "after": draft.shapes[second][0]}
    elif draft.op(first) == "zero" and node.op != "subtract":
        other, pad = second, {"before": draft.shapes[first][0], "after": 0}
    else:
        return None
    match node.op:
        case "add" | "subtract":
            return other
        case "maximum":
            return _make("relu", other)
        case "concat":
            return _make("pad_channels", other, **pad)
    return None


RULES: tuple[Rule, ...] = (
    _settle_hint,
    _drop_identity,
    _drop_unchanging,
    _drop_idle_move,
    _compose,
    _merge_reshapes,
    _merge_moves,
    _transpose_back,
    _join_slices,
    _settle_dilation,
    _single_element_window,
    _join_with_itself,
    _spread_zero,
    _join_with_zero,
)


# 2. Order


def _argument_orders(draft: _Draft, result: int) -> Iterator[list[tuple[int, ...]]]:
    """Every way to order all arguments that structure alone leaves open: one list of arguments, by node, each."""
    structures = _structures(draft)
    used = set(_post_order([node.args for node in draft.nodes], (), result))
    settled: list[tuple[int, ...]] = []
    tied: list[int] = []
    for i, node in enumerate(draft.nodes):
        arguments = node.args
        if node.op not in LEAVES and INSTRUCTIONS[node.op].commutative:
            arguments = tuple(sorted(arguments, key=structures.__getitem__))
            if i in used and arguments[0] != arguments[1] and structures[arguments[0]] == structures[arguments[1]]:
                tied.append(i)
        settled.append(arguments)
    for flips in product((False, True), repeat=len(tied)):  # at most 2^10: a tie costs two of 25 edges, and leaves
        flipped = {i for i, flip in zip(tied, flips, strict=True) if flip}
        yield [arguments[::-1] if i in flipped else arguments for i, arguments in enumerate(settled)]


def _structures(draft: _Draft) -> list[str]:
    """Digest of every node's expression in which weights of one shape look alike."""
    digests: list[str] = []
    for i, node in enumerate(draft.nodes):
        arguments = [digests[a] for a in node.args]
        if node.op not in LEAVES and INSTRUCTIONS[node.op].commutative:
            arguments.sort()
        which = i if node.op == INPUT else None
        digests.append(sha256(repr((node.op, which, arguments, node.hyper, node.shape)).encode()).hexdigest())
    return digests


def _post_order(arguments: Sequence[tuple[int, ...]], first: Sequence[int], result: int) -> dict[int, tuple[int, ...]]:
    """Nodes that `result` needs, after `first`, arguments before what uses them; each with its arguments."""
    order = {i: arguments[i] for i in first}

    def visit(i: int) -> None:
        if i not in order:
            for a in arguments[i]:
                visit(a)
            order[i] = arguments[i]

    visit(result)
    return order


def _renumbered(draft: _Draft, order: dict[int, tuple[int, ...]]) -> tuple[Node, ...]:
    position = {old: new for new, old in enumerate(order)}
    return tuple(
        Node(draft.nodes[i].op, tuple(position[a] for a in arguments), draft.nodes[i].hyper, draft.nodes[i].shape)
        for i, arguments in order.items()
    )
