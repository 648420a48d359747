"""Convolution, depthwise convolution, matrix product, pooling and means: one register-tiled loop nest for all.

They are the same computation: every output is a reduction over some axes, neighbouring outputs share operands, and what
precedes (zero padding) or follows (bias, residual, activation) is element-wise. The tile of outputs kept in registers
is `vectors` x `columns` vectors; the reduction runs outside it, so each loaded weight vector meets `columns` inputs and
each broadcast input meets `vectors` weights. Whatever follows is computed when the tile is stored, padding when a task
starts.

    for task (parallel)                  tasks of rows, or of channels
        pad the task's input
        for channels, rows, columns      of tiles
            for reduction                input channel blocks, window, channels within a block
                vectors x columns x lanes    unrolled, in registers
            store through the epilogue
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Literal

from gos_adapt.errors import Rejection
from tvm_passes.compat import LoopRV, SBlockRV, is_select, reduces, shape_of, variables_in
from tvm_passes.schedules.cpu import Cpu, divisors
from tvm_passes.schedules.kernel import Fused, Packing, Scheduled
from tvm_passes.schedules.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

TILES = 6
"""Register tiles worth measuring: the model below ranks them well enough that the fastest is among so many."""


@dataclass(frozen=True)
class Tiling:
    """The knobs of the loop nest.

    Attributes:
        lanes: Outputs in one vector, along the axis that is contiguous in memory.
        vectors: Vectors side by side along that axis.
        rows: Rows of outputs in registers.
        columns: Outputs in registers along the next axis (the width of a feature map).
        tasks: Pieces handed to threads; 1 for none.
        split: Which axis the tasks cut.
        walk: What the loops over tiles finish first: all pixels of some channels, or all channels of some pixels.
        padding: Whether each task makes a padded copy of its input, or each read asks whether it is inside.
        window: Whether the innermost loop over the window is unrolled.
        steps: Steps of the innermost reduction loop that are written out one after the other; 1 for a plain loop. Only
            hints set it (`Fused.hints`): LLVM unrolls well by itself.
    """

    lanes: int
    vectors: int
    rows: int
    columns: int
    tasks: int
    split: Literal["rows", "channels"]
    walk: Literal["pixels", "channels"] = "pixels"
    padding: Literal["copied", "asked"] = "copied"
    window: Literal["looped", "unrolled"] = "looped"
    steps: int = 1


@dataclass(frozen=True)
class _Axes:
    """Which axis of the output plays which part; -1 where there is none."""

    lane: int
    column: int
    row: int


@dataclass(frozen=True)
class Nest:
    """A kernel with one reduction, cleaned up: what is left of it is padding, the reduction, and one storing block."""

    reduction: SBlockRV
    padding: SBlockRV | None
    store: SBlockRV
    extents: tuple[int, ...]
    axes: _Axes


def _settings(kernel: Fused, cpu: Cpu, best: Tiling | None) -> Sequence[Tiling] | Rejection:
    nest = nest_of(kernel)
    if isinstance(nest, Rejection):
        return nest
    if best is not None:
        return list(_neighbours(kernel, nest, cpu, best))
    loads, hints = _loads(kernel, nest), kernel.hints
    tiles = sorted(_tiles(kernel, nest, cpu, loads), key=lambda tile: _cost(tile, loads(tile)))
    tiles = [tile for tile in tiles if tile.columns == hints.get("columns")] or tiles
    if _innermost(kernel, nest)[1] % hints.get("steps", 1) == 0:
        tiles = [replace(tile, steps=hints.get("steps", 1)) for tile in tiles]
    return [_shared(kernel, nest, cpu, tile) for tile in tiles[:TILES]]


def _loads(kernel: Fused, nest: Nest) -> Callable[[Tiling], int]:
    """Return what counts the vectors that one step of the reduction reads, for a tile.

    An operand is read once for each place of the tile along the axes it depends on: the weights of a convolution once
    for each vector, its input once for each pixel, but the input of a depthwise convolution for each of both.
    """
    block, axes = kernel.schedule.get(nest.reduction), nest.axes
    position = {axis.var: i for i, axis in enumerate(block.iter_vars)}
    operands = [
        {position[var] for dimension in read.region for var in variables_in(dimension.min) if var in position}
        for read in block.reads
        if not read.source.same_as(block.writes[0].source)
    ]

    def loads(tile: Tiling) -> int:
        extents = {axes.lane: tile.vectors, axes.row: tile.rows, axes.column: tile.columns}
        return sum(prod(extent for axis, extent in extents.items() if axis in operand) for operand in operands)

    return loads


def _innermost(kernel: Fused, nest: Nest) -> tuple[int, int]:
    """Axis and extent of the innermost loop over what is summed: channels within a block, or else the last axis."""
    full = kernel.axis_extents(nest.reduction)
    within = sorted(_blocked_reduction_axes(kernel, nest.reduction).items())
    blocks = [(axis, block) for axis, block in within if full[axis] % block == 0]
    return blocks[-1] if blocks else (len(full) - 1, full[-1])


def _tiles(kernel: Fused, nest: Nest, cpu: Cpu, loads: Callable[[Tiling], int]) -> Iterator[Tiling]:
    """Every register tile that divides the output and leaves registers for its operands."""
    extents, axes = nest.extents, nest.axes
    blocked = kernel.blocked_axis(nest.store) is not None
    lanes = kernel.written(nest.store)[-1] if blocked else divisors(extents[axes.lane], cpu.lanes)[-1]
    width = extents[axes.column] if axes.column >= 0 else 1
    height = extents[axes.row] if axes.row >= 0 else 1
    for vectors in divisors(extents[axes.lane] // lanes, 8):
        for rows in divisors(height, 4 if width <= 8 else 1):
            for columns in divisors(width, cpu.registers):
                tile = Tiling(lanes, vectors, rows, columns, 1, "rows")
                operands = vectors + 1 if cpu.memory_operands else loads(tile)
                if vectors * rows * columns + operands <= cpu.registers:
                    yield tile


def _cost(tile: Tiling, loads: int) -> tuple[float, int]:
    """Cycles per multiply-add of one step of the reduction, and then the fewest loads.

    Two multiply-adds and two loads start each cycle; a sum waits four cycles for its last addition (typical of the
    cores in `device_targets`; only the order of tiles depends on it).
    """
    sums = tile.vectors * tile.rows * tile.columns
    return max(sums / 2, loads / 2, 4.0) / sums, loads - sums


def _shared(kernel: Fused, nest: Nest, cpu: Cpu, tile: Tiling) -> Tiling:
    """Share a large kernel among the threads: cut rows where they divide, channels otherwise."""
    rows = nest.extents[nest.axes.row] // tile.rows if nest.axes.row >= 0 else 1
    channels = nest.extents[nest.axes.lane] // (tile.vectors * tile.lanes)
    if cpu.threads == 1 or prod(kernel.axis_extents(nest.reduction)) < cpu.serial_below:
        return tile
    if rows % cpu.threads == 0 or rows >= 8 * cpu.threads:
        return replace(tile, tasks=cpu.threads, split="rows")
    if channels >= cpu.threads:
        return replace(tile, tasks=cpu.threads, split="channels")
    return tile


def _neighbours(kernel: Fused, nest: Nest, cpu: Cpu, best: Tiling) -> Iterator[Tiling]:
    """Settings that differ from `best` in one knob other than the tile."""
    rows = nest.extents[nest.axes.row] // best.rows if nest.axes.row >= 0 else 1
    channels = nest.extents[nest.axes.lane] // (best.vectors * best.lanes)
    pixels = rows * (nest.extents[nest.axes.column] // best.columns if nest.axes.column >= 0 else 1)
    if best.tasks > 1:
        yield replace(best, tasks=1)
    if cpu.threads > 1 and rows > 1 and (best.tasks, best.split) != (cpu.threads, "rows"):
        yield replace(best, tasks=cpu.threads, split="rows")
    if cpu.threads > 1 and channels > 1 and (best.tasks, best.split) != (cpu.threads, "channels"):
        yield replace(best, tasks=cpu.threads, split="channels")
    if channels > 1 and pixels > 1:
        yield replace(best, walk="channels" if best.walk == "pixels" else "pixels")
    if nest.padding is not None:
        yield replace(best, padding="asked" if best.padding == "copied" else "copied")
    if kernel.axis_extents(nest.reduction)[-1] in range(2, 8):
        yield replace(best, window="unrolled" if best.window == "looped" else "looped")


def _schedule(kernel: Fused, _cpu: Cpu, packable: frozenset[int], knobs: Tiling) -> Scheduled | Rejection:
    nest = nest_of(kernel)
    if isinstance(nest, Rejection):
        return nest
    task, tile = _tile(kernel, nest, knobs)
    kernel.schedule.compute_at(nest.reduction, tile, preserve_unit_loops=True)
    order = _order_reduction(kernel, nest, knobs)
    if nest.padding is not None:
        if knobs.padding == "asked":
            kernel.schedule.compute_inline(nest.padding)
        else:
            kernel.schedule.compute_at(nest.padding, task, preserve_unit_loops=True)
            _vectorize_padding(kernel, nest.padding)
    packings = _pack(kernel, nest.reduction, order, packable)
    return Scheduled(kernel.func, packings)


TILED_REDUCTION = Rule("tiled reduction", Tiling, _settings, _schedule)


def nest_of(kernel: Fused) -> Nest | Rejection:
    """Inline what precedes and follows the one reduction of a kernel, but for its padding and its store."""
    if len(kernel.reductions) != 1:
        return Rejection(f"{len(kernel.reductions)} reductions, takes one")
    schedule = kernel.schedule
    (reduction,) = kernel.reductions
    at = list(kernel.blocks).index(reduction)
    prologue, epilogue = list(kernel.blocks[:at]), list(kernel.blocks[at + 1 :])
    padding = prologue.pop() if prologue and _pads(kernel, prologue[-1], reduction) else None
    for block in prologue:
        schedule.compute_inline(block)
    for block in epilogue[:-1]:
        schedule.compute_inline(block)
    store = epilogue[-1] if epilogue else schedule.cache_write(reduction, 0, "global")
    extents = kernel.axis_extents(store)
    kept = tuple(int(axis.dom.extent) for axis in schedule.get(reduction).iter_vars if not reduces(axis))
    if not extents or kept != extents:
        return Rejection("the epilogue changes the shape of the result")
    return Nest(reduction, padding, store, extents, _axes(kernel, store, extents))


def _axes(kernel: Fused, store: SBlockRV, extents: tuple[int, ...]) -> _Axes:
    blocked = kernel.blocked_axis(store)
    if blocked is not None:  # (n, c, h, w) stored as (n, c/b, h, w, b)
        return _Axes(lane=blocked, column=3, row=2)
    wide = [axis for axis, extent in enumerate(extents) if extent > 1] or [len(extents) - 1]
    if len(wide) >= 3:  # (c, h, w): channels share the input, columns are lanes
        return _Axes(lane=wide[-1], column=wide[-3], row=wide[-2])
    return _Axes(lane=wide[-1], column=wide[-2] if len(wide) == 2 else -1, row=-1)


def _tile(kernel: Fused, nest: Nest, knobs: Tiling) -> tuple[LoopRV, LoopRV]:
    """Tile the storing block; return the task loop and the innermost loop over tiles."""
    schedule, axes = kernel.schedule, nest.axes
    loops = list(schedule.get_loops(nest.store))
    outer, inner = dict(enumerate(loops)), []
    for axis, factors in ((axes.lane, [knobs.vectors]), (axes.row, [knobs.rows]), (axes.column, [knobs.columns])):
        if axis >= 0:
            outer[axis], *parts = schedule.split(
                loops[axis], [None, *factors, *([knobs.lanes] if axis == axes.lane else [])]
            )
            inner.append(parts)
    (vectors, lane), *pixels = inner
    unrolled = [vectors, *(loop for (loop,) in pixels)]
    cut = axes.row if knobs.split == "rows" and axes.row >= 0 else axes.lane
    task, outer[cut] = schedule.split(outer[cut], [knobs.tasks, None])
    leading = [outer[axis] for axis in range(len(loops)) if axis not in (axes.lane, axes.column, axes.row)]
    walk = [outer[axis] for axis in (axes.lane, axes.row, axes.column) if axis >= 0]
    if knobs.walk == "channels":
        walk = [*walk[1:], walk[0]]
    schedule.reorder(*leading, task, *walk, *unrolled, lane)
    task = schedule.fuse(*leading, task)
    if knobs.tasks > 1:
        schedule.parallel(task)
    schedule.vectorize(lane)
    for loop in unrolled:
        schedule.unroll(loop)
    return task, walk[-1]


def _order_reduction(kernel: Fused, nest: Nest, knobs: Tiling) -> list[tuple[int, int, int]]:
    """Put the reduction outside the tile; return the loop order as (axis, stride, extent) parts."""
    schedule, axes, rank = kernel.schedule, nest.axes, len(nest.extents)
    full = kernel.axis_extents(nest.reduction)
    loops = list(schedule.get_loops(nest.reduction))[-len(full) :]
    spatial, reduce = loops[:rank], list(range(rank, len(full)))
    vectors, lane = schedule.split(spatial[axes.lane], [None, knobs.lanes])
    parts: dict[int, list[tuple[LoopRV, tuple[int, int, int]]]] = {}
    within = _blocked_reduction_axes(kernel, nest.reduction)
    for axis in reduce:
        block = within.get(axis, 1)
        if block > 1 and full[axis] % block == 0:
            outer, inner = schedule.split(loops[axis], [None, block])
            parts[axis] = [(outer, (axis, block, full[axis] // block)), (inner, (axis, 1, block))]
        else:
            parts[axis] = [(loops[axis], (axis, 1, full[axis]))]
    if knobs.steps > 1:
        innermost, extent = _innermost(kernel, nest)
        loop, written_out = schedule.split(parts[innermost].pop()[0], [None, knobs.steps])
        parts[innermost] += [
            (loop, (innermost, knobs.steps, extent // knobs.steps)),
            (written_out, (innermost, 1, knobs.steps)),
        ]
        schedule.unroll(written_out)
    reduction_order = [parts[axis][0] for axis in reduce] + [part for axis in reduce for part in parts[axis][1:]]
    unrolled = [spatial[axis] for axis in range(rank) if axis not in (axes.lane, axes.column, axes.row)]
    unrolled += [spatial[axis] for axis in (axes.row, axes.column) if axis >= 0]
    unrolled.append(vectors)  # innermost: each input is used up before the next is read, or LLVM would spill them
    schedule.reorder(*[loop for loop, _ in reduction_order], *unrolled, lane)
    schedule.vectorize(lane)
    for loop in unrolled:
        schedule.unroll(loop)
    if knobs.window == "unrolled":
        schedule.unroll(parts[reduce[-1]][0][0])
    start = schedule.decompose_reduction(nest.reduction, reduction_order[0][0])
    *others, last = list(schedule.get_loops(start))[-rank - 1 :]
    schedule.vectorize(last)
    for loop in others:
        schedule.unroll(loop)

    step = knobs.vectors * knobs.lanes
    outputs = [(axis, 1, full[axis]) for axis in range(rank) if axis != axes.lane]
    return [
        (axes.lane, step, full[axes.lane] // step),
        *outputs,
        *[part for _, part in reduction_order],
        (axes.lane, knobs.lanes, knobs.vectors),
        (axes.lane, 1, knobs.lanes),
    ]


def _blocked_reduction_axes(kernel: Fused, reduction: SBlockRV) -> dict[int, int]:
    """Reduction axes that walk a blocked dimension of what they read, with the block's size."""
    block = kernel.schedule.get(reduction)
    positions = {axis.var: i for i, axis in enumerate(block.iter_vars) if reduces(axis)}
    found: dict[int, int] = {}
    for read in block.reads:
        shape = shape_of(read.source)
        if len(shape) == 5:
            found.update({positions[var]: shape[-1] for var in variables_in(read.region[4].min) if var in positions})
    return found


def _pads(kernel: Fused, block: SBlockRV, reduction: SBlockRV) -> bool:
    """Whether `block` makes the padded copy that `reduction` reads through windows (so inlining would branch)."""
    schedule = kernel.schedule
    consumers = schedule.get_consumers(block)
    return (
        len(consumers) == 1
        and schedule.get(consumers[0]).same_as(schedule.get(reduction))
        and is_select(schedule.get(block).body)
    )


def _vectorize_padding(kernel: Fused, padding: SBlockRV) -> None:
    schedule = kernel.schedule
    if kernel.blocked_axis(padding) is None:
        return
    channel, row, column = list(schedule.get_loops(padding))[-3:]
    outer, lane = schedule.split(channel, [None, kernel.written(padding)[-1]])
    schedule.reorder(outer, row, column, lane)
    schedule.vectorize(lane)


def _pack(
    kernel: Fused, reduction: SBlockRV, order: list[tuple[int, int, int]], packable: frozenset[int]
) -> dict[int, Packing]:
    """Store each constant operand in the order the loop nest reads it."""
    schedule = kernel.schedule
    packings: dict[int, Packing] = {}
    params = list(kernel.func.params)
    block = schedule.get(reduction)
    axes = {axis.var: i for i, axis in enumerate(block.iter_vars)}
    for position, read in enumerate(block.reads):
        index = next((i for i, param in enumerate(params) if param.same_as(read.source)), None)
        if index is None or index not in packable:
            continue
        shape = shape_of(read.source)
        used = [axes.get(dimension.min) for dimension in read.region]
        if len(shape) < 2 or any(axis is None for axis, size in zip(used, shape, strict=True) if size > 1):
            continue
        dimension_of = {axis: dimension for dimension, axis in enumerate(used) if axis is not None}
        parts = [(dimension_of[axis], stride, extent) for axis, stride, extent in order if axis in dimension_of]
        units = [(dimension, 1, 1) for dimension, axis in enumerate(used) if axis is None]
        packing = Packing((*units, *parts))
        if prod(extent for _, _, extent in packing.parts) != prod(shape):
            continue
        schedule.transform_layout(reduction, ("read", position), packing.index_map)
        packings[index] = packing
    return packings
