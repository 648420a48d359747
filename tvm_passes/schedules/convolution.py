"""Recognise a dense 3x3 convolution of stride 1 in a fused kernel, by what its blocks read and sum.

What is found no longer depends on how the kernel is fused or laid out: any place of the padded input can be read, and
any place of the result stored through whatever follows the convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gos_adapt.errors import Rejection
from tvm_passes.compat import Analyzer, TensorLoad, TirBuilder, loads_in, map_nodes, reduces, shape_of, tirx
from tvm_passes.schedules.tiled_reduction import nest_of

if TYPE_CHECKING:
    from tvm_passes.schedules.kernel import Fused

Place = Sequence[Any]
"""Of an element of a feature map: (image, channel, row, column)."""


@dataclass(frozen=True)
class Convolution:
    """What a kernel computes.

    Attributes:
        weights: Position of the parameter of shape (outputs, inputs, 3, 3).
        outputs: Channels of the result.
        inputs: Channels of the input.
        images: The batch.
        height: Rows of the result; the padded input has two more.
        width: Columns of the result; the padded input has two more.
        features: The buffer the window moves over.
        padding: The block that writes it, or `None` where it is a parameter.
        sums: The buffer of the sums.
        epilogue: The block that reads them and stores the result.
    """

    weights: int
    outputs: int
    inputs: int
    images: int
    height: int
    width: int
    features: Any
    padding: Any
    sums: Any
    epilogue: Any

    @property
    def products(self) -> int:
        """Multiplications of the direct computation."""
        return self.images * self.outputs * self.height * self.width * self.inputs * 9

    def read(self, place: Place) -> tuple[Any, Any]:
        """Whether a place of the padded input holds more than padding, and what; beyond its end there is only that."""
        within = tirx.all(place[2] < self.height + 2, place[3] < self.width + 2)
        if self.padding is None:
            return within, tirx.BufferLoad(self.features, _indices(self.features, place))
        inside, value, _ = (_moved(part, self.padding, place) for part in self.padding.body.value.args)
        return tirx.all(within, inside), value

    def store(self, total: Any, place: Place) -> None:
        """Write, with the builder at work, the store of what the epilogue makes of the sum at a place of the result."""
        store = self.epilogue.body
        value = map_nodes(store.value, TensorLoad, lambda load: total if load.source.same_as(self.sums) else load)
        indices = [_moved(index, self.epilogue, place) for index in store.indices]
        TirBuilder.buffer_store(store.buffer, _moved(value, self.epilogue, place), indices)


def recognise(kernel: Fused) -> Convolution | Rejection:
    """Return the convolution a kernel computes, after inlining what follows it into one store."""
    nest = nest_of(kernel)
    if isinstance(nest, Rejection):
        return nest
    block, epilogue = kernel.schedule.get(nest.reduction), kernel.schedule.get(nest.store)
    padding = None if nest.padding is None else kernel.schedule.get(nest.padding)
    window = _window(block)
    if isinstance(window, Rejection):
        return window
    features, weights, images, height, width = window
    if padding is not None and not _pads_with_zeros(padding):
        return Rejection("pads with something other than zeros")
    sums = block.body.buffer
    taken = [load for load in loads_in(epilogue.body.value) if load.source.same_as(sums)]
    if not all(_stands_at(load.source, load.indices, _axes(epilogue), epilogue) for load in taken):
        return Rejection("what follows the convolution moves its result")
    position = next((i for i, parameter in enumerate(kernel.func.params) if parameter.same_as(weights)), None)
    if position is None:
        return Rejection("the weights are not a parameter")
    outputs, inputs, *_ = shape_of(weights)
    return Convolution(position, outputs, inputs, images, height, width, features, padding, sums, epilogue)


def _window(block: Any) -> tuple[Any, Any, int, int, int] | Rejection:
    """What a block sums over and where: the buffers of features and weights; images, height and width of the result."""
    factors = _factors(block)
    if factors is None:
        return Rejection("does not sum products of float32 numbers")
    features, weights = factors
    extents = {axis.var: int(axis.dom.extent) for axis in block.iter_vars}
    summed = [axis.var for axis in block.iter_vars if reduces(axis)]
    if len(extents) != 7 or [index in summed for index in weights.indices] != [False, True, True, True]:
        return Rejection("does not sum over all channels and a window")
    output, channel, row, column = weights.indices
    if (extents[row], extents[column]) != (3, 3):
        return Rejection(f"the window is {extents[row]}x{extents[column]}, takes 3x3")
    image, y, x = (axis for axis in extents if axis not in [output, *summed])
    if not _stands_at(features.source, features.indices, (image, channel, y + row, x + column), block):
        return Rejection("the window has a stride or gaps, or does not move over a feature map")
    if not _stands_at(block.body.buffer, block.body.indices, (image, output, y, x), block):
        return Rejection("does not write a feature map")
    return features.source, weights.source, extents[image], extents[y], extents[x]


def _factors(block: Any) -> tuple[Any, Any] | None:
    """The two loads whose products a block sums, starting from zero."""
    start, total = block.init.value, block.body.value
    product = getattr(total, "b", None)
    if not (isinstance(total, tirx.Add) and isinstance(product, tirx.Mul) and _is_zero(start)):
        return None
    factors = product.a, product.b
    if not all(isinstance(factor, TensorLoad) and str(factor.ty.dtype) == "float32" for factor in factors):
        return None
    return factors


def _pads_with_zeros(block: Any) -> bool:
    inside_out = block.body.value.args[2]
    return _is_zero(inside_out) and _stands_at(block.body.buffer, block.body.indices, _axes(block), block)


def _is_zero(value: Any) -> bool:
    return isinstance(value, tirx.FloatImm) and float(value.value) == 0


def _axes(block: Any) -> list[Any]:
    return [axis.var for axis in block.iter_vars]


def _indices(buffer: Any, place: Place) -> Place:
    """Indices of a place of a feature map, which is stored as (n, c, h, w) or (n, c/b, h, w, b)."""
    image, channel, row, column = place
    shape = shape_of(buffer)
    return (image, channel // shape[4], row, column, channel % shape[4]) if len(shape) == 5 else place


def _stands_at(buffer: Any, indices: Sequence[Any], place: Place, block: Any) -> bool:
    """Whether `indices` are those of a place, for all values of the block's axes."""
    if len(place) != 4 or len(indices) != len(expected := _indices(buffer, place)):
        return False
    analyzer = Analyzer()
    for axis in block.iter_vars:
        analyzer.bind(axis.var, axis.dom)
    return all(analyzer.can_prove_equal(index, at) for index, at in zip(indices, expected, strict=True))


def _moved(expression: Any, block: Any, place: Place) -> Any:
    """What a block computes with `place` for its axes."""
    values = dict(zip(_axes(block), place, strict=True))
    return map_nodes(expression, tirx.Var, lambda var: values.get(var, var))
