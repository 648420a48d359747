"""Dense 3x3 convolutions of stride 1 by Winograd's algorithm: 2.25 or 4 times fewer multiplications.

The result is cut into tiles of m x m. The (m + 2)² inputs of a tile are transformed, channel by channel; each of these
points is multiplied with weights that were transformed when the model was compiled, for all tiles and channels at once,
which is a matrix product; and the sums are transformed back into m x m outputs (A. Lavin and S. Gray, "Fast Algorithms
for Convolutional Neural Networks", 2016, arXiv:1509.09308, section 4). Tiles are done in blocks, so that what lies
between the stages stays in cache. Those that overhang the result are computed in full and stored in part.

    for block                                of tiles; the threads share blocks, or the channels within one
        for input channels, tile
            transform inputs                 a vector of channels
        for panel                            of output channels
            for point, tiles
                for input channel
                    columns x vectors x lanes    unrolled, in registers
            for output channels, tile
                transform sums, store through the epilogue
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from gos_adapt.errors import Rejection
from tvm_passes.compat import IRBuilder, PrimFunc, tirx
from tvm_passes.compat import TirBuilder as T
from tvm_passes.schedules.convolution import Convolution, recognise
from tvm_passes.schedules.cpu import Cpu, divisors
from tvm_passes.schedules.kernel import ENTRY, Fused, Packing, Scheduled
from tvm_passes.schedules.rule import Rule
from tvm_passes.schedules.winograd_transforms import INPUT_TRANSFORMS, OUTPUT_TRANSFORMS, transform_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Split = Literal["nothing", "tiles", "channels"]

SUMS = 16
"""Accumulators that keep two multiply-adds starting each cycle; more only make tiles overhang further."""

TILES: dict[Split, int] = {"nothing": 6, "tiles": 6, "channels": 64}
"""The fewest tiles in a guessed block, by what threads share: every block reads all weights, or starts all threads."""
LIGHT = 5_000_000
"""Bytes of transformed weights up to which a guess is sure to gain: in ResNet-18, on a core with 1 MiB of second-level
cache, 4x4 tiles did for 128 channels (2.4 MB), 2x2 tiles for 256 (4.2 MB), and neither for 512 (17 MB)."""


@dataclass(frozen=True)
class Winograd:
    """The knobs of the loop nest.

    Attributes:
        tile: Outputs along each side of a tile, 2 or 4: the larger multiplies less and reads more weights.
        block: Tiles done together.
        vectors: Vectors of output channels in registers.
        columns: Tiles in registers.
        split: What the threads share.
    """

    tile: int
    block: int
    vectors: int
    columns: int
    split: Split


@dataclass(frozen=True)
class TransformedWeights:
    """How the weights are stored: transformed, in the order they are read.

    Attributes:
        tile: Outputs along each side of a tile.
        packing: Of the transformed weights (point, output channel, input channel).
    """

    tile: int
    packing: Packing

    def apply(self, array: Any) -> Any:
        """Return weights (outputs, inputs, 3, 3) as they must be stored."""
        return self.packing.apply(transform_weights(array, self.tile))


@dataclass(frozen=True)
class _Nest:
    """Sizes of the loops.

    Attributes:
        convolution: What is computed.
        knobs: How it is cut.
        lanes: Input channels, and output channels, of one vector.
    """

    convolution: Convolution
    knobs: Winograd
    lanes: tuple[int, int]

    @property
    def side(self) -> int:
        """Inputs along each side of a tile."""
        return self.knobs.tile + 2

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tiles of the result: images, down, across."""
        convolution, tile = self.convolution, self.knobs.tile
        return convolution.images, -(-convolution.height // tile), -(-convolution.width // tile)

    @property
    def tiles(self) -> int:
        """Tiles of the result."""
        images, down, across = self.grid
        return images * down * across

    @property
    def blocks(self) -> int:
        """Blocks of tiles, the last perhaps not full."""
        return -(-self.tiles // self.knobs.block)

    @property
    def panels(self) -> int:
        """Groups of output channels, each of `knobs.vectors` vectors."""
        return self.convolution.outputs // (self.knobs.vectors * self.lanes[1])


def _settings(kernel: Fused, cpu: Cpu, best: Winograd | None) -> Sequence[Winograd] | Rejection:
    convolution = _accepted(kernel, cpu)
    if isinstance(convolution, Rejection):
        return convolution
    if best is not None:
        return list(_neighbours(_nest(convolution, cpu, best), cpu))
    guesses = [guess for tile in INPUT_TRANSFORMS for guess in _guesses(convolution, cpu, tile)]
    return sorted(_ranked(convolution, cpu, guesses), key=lambda knobs: not _light(convolution, knobs))


def _leads(kernel: Fused, knobs: Winograd) -> bool:
    """Whether this is a better guess than the direct computation."""
    convolution = recognise(kernel)
    return isinstance(convolution, Convolution) and _light(convolution, knobs)


def _light(convolution: Convolution, knobs: Winograd) -> bool:
    return 4 * (knobs.tile + 2) ** 2 * convolution.inputs * convolution.outputs <= LIGHT


def _accepted(kernel: Fused, cpu: Cpu) -> Convolution | Rejection:
    convolution = recognise(kernel)
    if isinstance(convolution, Convolution) and 1 in (cpu.block(convolution.inputs), cpu.block(convolution.outputs)):
        return Rejection(f"{convolution.inputs} to {convolution.outputs} channels do not divide into vectors")
    return convolution


def _nest(convolution: Convolution, cpu: Cpu, knobs: Winograd) -> _Nest:
    return _Nest(convolution, knobs, (cpu.block(convolution.inputs), cpu.block(convolution.outputs)))


def _guesses(convolution: Convolution, cpu: Cpu, tile: int) -> list[Winograd]:
    """The best guess for each of the numbers of vectors that promise most."""
    best: dict[int, Winograd] = {}
    for knobs in _ranked(convolution, cpu, _candidates(convolution, cpu, tile)):
        best.setdefault(knobs.vectors, knobs)
    return list(best.values())[:3]


def _ranked(convolution: Convolution, cpu: Cpu, settings: Iterable[Winograd]) -> list[Winograd]:
    return sorted(settings, key=lambda knobs: _cost(_nest(convolution, cpu, knobs), cpu))


def _candidates(convolution: Convolution, cpu: Cpu, tile: int) -> Iterator[Winograd]:
    serial = cpu.threads == 1 or convolution.products < cpu.serial_below
    splits: tuple[Split, ...] = ("nothing",) if serial else ("tiles", "channels")
    for vectors in divisors(convolution.outputs // cpu.block(convolution.outputs), 6):
        for columns in range(1, SUMS // vectors + 1):
            for split in splits if vectors * columns + min(vectors, columns) < cpu.registers else ():
                knobs = Winograd(tile, columns, vectors, columns, split)
                groups = -(-min(TILES[split], _nest(convolution, cpu, knobs).tiles) // columns)
                yield from (replace(knobs, block=columns * n) for n in range(groups, 2 * groups + 1))


def _cost(nest: _Nest, cpu: Cpu) -> float:
    """Cycles of all products, up to a factor: of a step in registers, for tiles that overhang, while threads wait.

    Two multiply-adds and two loads start each cycle, and a step costs one more (typical of the cores in
    `device_targets`; only the order of guesses depends on it).
    """
    knobs = nest.knobs
    sums, loads = knobs.vectors * knobs.columns, knobs.vectors + knobs.columns
    shares = {"nothing": 1, "tiles": nest.blocks, "channels": nest.panels}[knobs.split]
    threads = 1 if knobs.split == "nothing" else cpu.threads
    products = nest.side**2 * nest.blocks * knobs.block
    return products * (max(sums, loads) / 2 + 1) / sums * -(-shares // threads) / shares


def _neighbours(nest: _Nest, cpu: Cpu) -> Iterator[Winograd]:
    """Settings that differ in the block or in what is split."""
    knobs = nest.knobs
    for block in (knobs.block * 2, knobs.block * 4, knobs.block // 2):
        if block % knobs.columns == 0 and 0 < block < nest.tiles + knobs.columns:
            yield replace(knobs, block=block)
    for split in get_args(Split):
        if cpu.threads > 1 and split != knobs.split:
            yield replace(knobs, split=split)


def _schedule(kernel: Fused, cpu: Cpu, packable: frozenset[int], knobs: Winograd) -> Scheduled | Rejection:
    convolution = _accepted(kernel, cpu)
    if isinstance(convolution, Rejection):
        return convolution
    if convolution.weights not in packable:
        return Rejection("the weights are not constant")
    if not _fits(knobs, convolution.outputs // cpu.block(convolution.outputs)):
        return Rejection(f"{knobs} does not fit {convolution.outputs} channels")
    nest = _nest(convolution, cpu, knobs)
    points, inputs, width = nest.side**2, convolution.inputs, knobs.vectors * nest.lanes[1]
    params = list(kernel.func.params)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(ENTRY)
        weights = T.arg("weights", T.buffer(_sizes(nest.panels, points, inputs, width), layout=None))
        _loops(nest, weights)
    params[convolution.weights] = weights
    func = PrimFunc(params, builder.get().body, attrs=kernel.func.attrs)
    packing = Packing(((1, width, nest.panels), (0, 1, points), (2, 1, inputs), (1, 1, width)))
    return Scheduled(func, {convolution.weights: TransformedWeights(knobs.tile, packing)})


WINOGRAD = Rule("winograd", Winograd, _settings, _schedule, _leads)


def _fits(knobs: Winograd, vectors: int) -> bool:
    """Whether knobs, perhaps read from a record of another kernel, divide `vectors` of output channels."""
    known = knobs.tile in INPUT_TRANSFORMS and knobs.split in get_args(Split)
    positive = min(knobs.block, knobs.vectors, knobs.columns) > 0
    return known and positive and vectors % knobs.vectors == 0 and knobs.block % knobs.columns == 0


def _loops(nest: _Nest, weights: Any) -> None:
    knobs, points = nest.knobs, nest.side**2
    vectors = nest.convolution.inputs // nest.lanes[0]
    tiles = T.parallel if knobs.split == "tiles" else T.serial
    channels = T.parallel if knobs.split == "channels" else T.serial
    with _loop(nest.blocks, tiles) as block:
        inputs = _buffer("inputs", points, vectors, knobs.block, nest.lanes[0])
        with _loop(vectors, channels) as vector, _loop(knobs.block) as tile:
            _transform_inputs(nest, inputs, (block, tile), vector)
        with _loop(nest.panels, channels) as panel:
            sums = _buffer("sums", points, knobs.vectors, knobs.block, nest.lanes[1])
            with _loop(points) as point, _loop(knobs.block // knobs.columns) as group:
                _multiply(nest, inputs, weights, sums, (panel, point, group))
            with _loop(knobs.vectors) as vector, _loop(knobs.block) as tile:
                _transform_sums(nest, sums, (block, tile), panel, vector)


def _transform_inputs(nest: _Nest, inputs: Any, at: tuple[Any, Any], vector: Any) -> None:
    lanes, side = nest.lanes[0], nest.side
    there, image, row, column = _corner(nest, *at)
    with _loop(lanes, T.vectorized) as lane:

        def taken(i: int, j: int) -> Any:
            inside, value = nest.convolution.read((image, vector * lanes + lane, row + i, column + j))
            return tirx.if_then_else(tirx.all(there, inside), value, tirx.const(0, "float32"))

        window = [[taken(i, j) for j in range(side)] for i in range(side)]
        for i, line in enumerate(_both_ways(INPUT_TRANSFORMS[nest.knobs.tile], window)):
            for j, factor in enumerate(line):
                T.buffer_store(inputs, factor, [i * side + j, vector, at[1], lane])


def _multiply(nest: _Nest, inputs: Any, weights: Any, sums: Any, at: tuple[Any, Any, Any]) -> None:
    """Multiply a group of tiles with a panel of output channels at one point."""
    knobs, (panel, point, group) = nest.knobs, at
    taken, given = nest.lanes
    registers = _buffer("registers", knobs.columns, knobs.vectors, given)
    with _in_registers(nest) as (column, vector, lane):
        T.buffer_store(registers, tirx.const(0, "float32"), [column, vector, lane])
    with (
        _loop(nest.convolution.inputs // taken) as outer,
        _loop(taken) as inner,
        _in_registers(nest) as (column, vector, lane),
    ):
        left = inputs[point, outer, group * knobs.columns + column, inner]
        right = weights[panel, point, outer * taken + inner, vector * given + lane]
        T.buffer_store(registers, registers[column, vector, lane] + left * right, [column, vector, lane])
    with _in_registers(nest) as (column, vector, lane):
        T.buffer_store(sums, registers[column, vector, lane], [point, vector, group * knobs.columns + column, lane])


@contextmanager
def _in_registers(nest: _Nest) -> Iterator[tuple[Any, Any, Any]]:
    """Loops over what is kept in registers; vectors are innermost, so that inputs wait in registers one at a time."""
    with (
        _loop(nest.knobs.columns, T.unroll) as column,
        _loop(nest.knobs.vectors, T.unroll) as vector,
        _loop(nest.lanes[1], T.vectorized) as lane,
    ):
        yield column, vector, lane


def _transform_sums(nest: _Nest, sums: Any, at: tuple[Any, Any], panel: Any, vector: Any) -> None:
    convolution, side, size, lanes = nest.convolution, nest.side, nest.knobs.tile, nest.lanes[1]
    outputs = _buffer("outputs", size, size, lanes)
    with _loop(lanes, T.vectorized) as lane:
        products = [[sums[i * side + j, vector, at[1], lane] for j in range(side)] for i in range(side)]
        for i, line in enumerate(_both_ways(OUTPUT_TRANSFORMS[size], products)):
            for j, output in enumerate(line):
                T.buffer_store(outputs, output, [i, j, lane])
    there, image, row, column = _corner(nest, *at)
    with _loop(size) as i, _loop(size) as j:
        inside = tirx.all(there, row + i < convolution.height, column + j < convolution.width)
        with T.If(inside), T.Then(), _loop(lanes, T.vectorized) as lane:
            channel = (panel * nest.knobs.vectors + vector) * lanes + lane
            convolution.store(outputs[i, j, lane], (image, channel, row + i, column + j))


def _corner(nest: _Nest, block: Any, tile: Any) -> tuple[Any, Any, Any, Any]:
    """Whether there is such a tile, and the image, row and column it starts at."""
    _, down, across = nest.grid
    number = block * nest.knobs.block + tile
    row, column = number // across % down, number % across
    return number < nest.tiles, number // (down * across), row * nest.knobs.tile, column * nest.knobs.tile


def _both_ways(transform: Callable[..., tuple[Any, ...]], matrix: list[list[Any]]) -> list[tuple[Any, ...]]:
    """Transform every column, and then every row; each intermediate value is computed once."""
    columns = [transform(*map(T.Bind, column)) for column in zip(*matrix, strict=True)]
    return [transform(*map(T.Bind, row)) for row in zip(*columns, strict=True)]


def _loop(extent: int, kind: Callable[[Any], Any] = T.serial) -> Any:
    return kind(*_sizes(extent))


def _buffer(name: str, *shape: int) -> Any:
    return IRBuilder.name(name, T.alloc_buffer(_sizes(*shape), layout=None))


def _sizes(*sizes: int) -> list[Any]:
    """Sizes in the type the indices of kernels have."""
    return [tirx.IntImm("int64", size) for size in sizes]
