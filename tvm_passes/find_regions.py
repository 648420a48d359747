"""Find the region of a Relax function that computes a site, whatever an importer or another pass has made of it.

A *region* is everything between two values: nothing in it is read outside but its last value (its *exit*), and it reads
nothing from outside but its *entry* and constants. A site's region is one that holds the site's weights and no others,
maps the same shapes, and answers the stimuli with the site's response. Structure alone leaves open where a region ends
(is the addition that follows a convolution its bias?), so the few regions that structure allows are compiled for this
machine and asked.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gos_adapt.adaptation import Entry, sample, stimuli
from gos_adapt.errors import ModelImportError, Rejection
from gos_adapt.model.anchors import weight_digest
from gos_adapt.model.wording import quote
from tvm_passes.compat import Constant, IRModule, PrimFunc, Target, relax, tirx, tvm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gos_adapt.instructions.base import Shape

Array = np.ndarray[Any, Any]

TOLERANCE = 1e-4
"""How far the answer to each stimulus may be from the response, relative to the largest number in that."""


@dataclass(frozen=True)
class Region:
    """A closed region of a function.

    Attributes:
        entry: The variable it reads.
        exit: The variable it computes.
        bindings: Positions of its bindings in the function.
    """

    entry: Any
    exit: Any
    bindings: frozenset[int]


def find_region(module: IRModule, dataflow: Dataflow, site: Entry) -> Region:
    """Return the region of `module`'s main function that computes `site`.

    Args:
        module: Holds the kernels that the function calls already.
        dataflow: Of the function.
        site: What to find.

    Raises:
        ModelImportError: no region computes it, or not as many as in the original model.
    """
    name = f"site {quote(site.site)} ({quote(site.kind)})"
    if isinstance(site.anchor, Rejection):
        raise ModelImportError(f"{name} cannot be replaced here: {site.anchor.reason}; compile adapted.onnx instead")
    weights = Counter(node.weight for node in site.anchor.nodes if node.weight)
    found: list[Region] = []
    for regions in dataflow.regions(weights, site.input_shape, site.output_shape):
        open_regions = [region for region in regions if not overlapping(region, found)]
        if open_regions:
            found += _computing(module, dataflow, open_regions, site)
    if len(found) != site.occurrences:
        raise ModelImportError(
            f"{name}: {len(found)} places of the module compute it, expected {site.occurrences}; apply "
            "ReplaceOperators first, to what from_onnx makes of the original model with its weights bound"
        )
    return sorted(found, key=lambda region: max(region.bindings))[site.occurrence]


def overlapping(region: Region, others: Sequence[Region]) -> bool:
    """Whether a region shares a binding with one of the others."""
    return any(not region.bindings.isdisjoint(other.bindings) for other in others)


@dataclass(frozen=True)
class Dataflow:
    """What each binding of a function reads; *features* are the values that depend on the function's parameters."""

    function: Any

    @cached_property
    def bindings(self) -> tuple[Any, ...]:
        """All bindings, in the order they run."""
        return tuple(binding for block in self.function.body.blocks for binding in block.bindings)

    @cached_property
    def features(self) -> tuple[frozenset[Any], ...]:
        """Feature variables that each binding reads; none: it is a constant."""
        known = set(self.function.params)
        reads = []
        for binding in self.bindings:
            reads.append(frozenset(variable for variable in _variables(binding.value) if variable in known))
            if reads[-1]:
                known.add(binding.var)
        return tuple(reads)

    @cached_property
    def readers(self) -> Mapping[Any, frozenset[int]]:
        """Positions of the bindings that read a feature; one past the last stands for the function's result."""
        readers: dict[Any, set[int]] = {}
        for i, reads in enumerate((*self.features, _variables(self.function.body.body))):
            for variable in reads:
                readers.setdefault(variable, set()).add(i)
        return {variable: frozenset(positions) for variable, positions in readers.items()}

    @cached_property
    def weights(self) -> tuple[tuple[_Weight, ...], ...]:
        """Constants that each binding reads, itself or through views of them."""
        held: dict[Any, tuple[_Weight, ...]] = {}
        weights = []
        for binding, reads in zip(self.bindings, self.features, strict=True):
            found = tuple(_Weight.of(constant) for constant in _constants(binding.value))
            found += tuple(weight for variable in _variables(binding.value) for weight in held.get(variable, ()))
            if not reads:
                held[binding.var] = found
            weights.append(found if reads else ())
        return tuple(weights)

    def regions(self, weights: Counter[str], input_shape: Shape, output_shape: Shape) -> Iterator[list[Region]]:
        """Yield the regions with these weights (digests) and shapes (without batch), grouped by entry, latest first."""
        values = [*self.function.params, *(binding.var for binding in self.bindings)]
        for entry in reversed(values):
            if feature_shape(entry) == input_shape:
                yield [
                    Region(entry, exit_, bindings)
                    for exit_, bindings in self._after(entry, weights)
                    if feature_shape(exit_) == output_shape
                ]

    def _after(self, entry: Any, weights: Counter[str]) -> Iterator[tuple[Any, frozenset[int]]]:
        """Yield (exit, bindings) of the regions from `entry` with exactly these weights."""
        needed: dict[Any, frozenset[int]] = {entry: frozenset()}  # bindings between the entry and a value
        for i, (binding, reads) in enumerate(zip(self.bindings, self.features, strict=True)):
            if not reads or not reads <= needed.keys():
                continue
            bindings = frozenset({i}).union(*(needed[variable] for variable in reads))
            held = Counter(digest for j in bindings for w in self.weights[j] if (digest := w.named(weights)))
            if not held <= weights:
                continue
            needed[binding.var] = bindings
            inner = (self.bindings[j].var for j in bindings - {i})
            if held == weights and all(self.readers[variable] <= bindings for variable in inner):
                yield binding.var, bindings


def feature_shape(variable: Any) -> Shape | None:
    """Shape of a float32 tensor without its batch axis; None if it is none, or has other symbolic axes."""
    if not isinstance(variable.ty, relax.TensorType) or variable.ty.shape is None:
        return None
    if str(variable.ty.dtype) != "float32":
        return None
    sizes = list(variable.ty.shape)[1:]
    fixed = [int(size) for size in sizes if isinstance(size, tirx.IntImm)]
    return tuple(fixed) if len(fixed) == len(sizes) else None


@dataclass(frozen=True)
class _Weight:
    """A constant, known by its numbers.

    Attributes:
        digests: `weight_digest` as it is, and transposed if it is a matrix: importers transpose.
        filters: Whether it may be a filter or a matrix: more than one axis is longer than 1.
    """

    digests: tuple[str, ...]
    filters: bool

    @classmethod
    def of(cls, constant: Any) -> _Weight:
        array = constant.value.numpy()
        forms = (array, array.T) if array.ndim == 2 else (array,)
        return cls(tuple(map(weight_digest, forms)), sum(size > 1 for size in array.shape) > 1)

    def named(self, weights: Counter[str]) -> str | None:
        """Which of these weights it is; its own digest if it is another, None if it is none."""
        known = next((digest for digest in self.digests if digest in weights), None)
        return known or (self.digests[0] if self.filters else None)


def _variables(expression: Any) -> frozenset[Any]:
    return frozenset(_parts(expression, relax.Var))


def _constants(expression: Any) -> list[Any]:
    return _parts(expression, Constant)


def _parts(expression: Any, kind: type) -> list[Any]:
    found: list[Any] = []
    relax.analysis.post_order_visit(expression, lambda part: found.append(part) if isinstance(part, kind) else None)
    return found


def _computing(module: IRModule, dataflow: Dataflow, regions: Sequence[Region], site: Entry) -> list[Region]:
    """Of regions with one entry, the one that answers like the site: none or one."""
    scales = np.maximum(np.abs(site.response).max(axis=1), np.finfo(np.float32).tiny)
    answers = _answers(module, dataflow, regions, stimuli(site.input_shape))
    deviations = [(np.abs(answer - site.response).max(axis=1) / scales).max() for answer in answers]
    best = int(np.argmin(np.nan_to_num(deviations, nan=np.inf)))
    return [regions[best]] if deviations[best] <= TOLERANCE else []


def _answers(module: IRModule, dataflow: Dataflow, regions: Sequence[Region], inputs: Array) -> list[Array]:
    """Samples of what each of the regions, all of one entry, answers to each of the inputs, one after another."""
    entry = regions[0].entry
    wanted = frozenset[int]().union(*(region.bindings for region in regions))
    constant = {i for i, reads in enumerate(dataflow.features) if not reads}
    parameter = relax.Var("stimulus", entry.ty)
    results = relax.Tuple([region.exit for region in regions])
    result = relax.Var("answers", results.ty)
    bindings = [
        relax.VarBinding(entry, parameter),
        *(dataflow.bindings[i] for i in sorted(wanted | constant)),
        relax.VarBinding(result, results),
    ]
    body = relax.SeqExpr([relax.DataflowBlock(bindings)], result)
    function = relax.Function([parameter], body, results.ty, is_pure=dataflow.function.is_pure)
    kernels = {variable: f for variable, f in module.functions_items() if isinstance(f, PrimFunc)}
    asked = IRModule(kernels | {module.get_global_var("main"): function.with_attr("global_symbol", "main")})
    asked = relax.transform.DeadCodeElimination(["main"])(asked)
    target = Target({"kind": "llvm", "opt-level": 1})  # it runs a few times only: most goes into compiling it
    machine = relax.VirtualMachine(tvm.compile(asked, target), tvm.cpu())
    batch = entry.ty.shape[0]
    size = int(batch) if isinstance(batch, tirx.IntImm) else 1
    answers = [machine["main"](tvm.runtime.tensor(np.stack([stimulus] * size))) for stimulus in inputs]
    return [sample(np.stack([answer[k].numpy()[0] for answer in answers])) for k in range(len(regions))]
