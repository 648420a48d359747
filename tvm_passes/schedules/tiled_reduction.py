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

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from gos_adapt.errors import Rejection
from tvm_passes.compat import LoopRV, SBlockRV, reduces, shape_of, variables_in
from tvm_passes.schedules.cpu import Cpu, largest_divisor
from tvm_passes.schedules.kernel import Fused, Packing, Scheduled


@dataclass(frozen=True)
class Tiling:
    """The knobs of the loop nest.

    Attributes:
        lanes: Outputs in one vector, along the axis that is contiguous in memory.
        vectors: Vectors side by side along that axis.
        columns: Outputs in registers along the next axis (the width of a feature map).
        tasks: Pieces handed to threads; 1 for none.
        split: Which axis the tasks cut.
    """

    lanes: int
    vectors: int
    columns: int
    tasks: int
    split: Literal["rows", "channels"]


@dataclass(frozen=True)
class _Axes:
    """Which axis of the output plays which part; -1 where there is none."""

    lane: int
    column: int
    row: int


def schedule_tiled_reduction(
    kernel: Fused, cpu: Cpu, packable: frozenset[int], tiling: Tiling | None = None
) -> Scheduled | Rejection:
    """Apply the loop nest to a kernel with one reduction.

    Args:
        kernel: The fused kernel; consumed.
        cpu: What to tile for.
        packable: Indices of the parameters that are constants and may be stored in any order.
        tiling: Knobs; `None` takes `default_tiling`.
    """
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
    axes_of = schedule.get(reduction).iter_vars
    kept = tuple(int(axis.dom.extent) for axis in axes_of if not reduces(axis))
    if not extents or kept != extents:
        return Rejection("the epilogue changes the shape of the result")
    axes = _axes(kernel, store, extents)
    tiling = tiling or default_tiling(kernel, store, axes, cpu)

    task, tile = _tile(kernel, store, axes, tiling)
    schedule.compute_at(reduction, tile, preserve_unit_loops=True)
    order = _order_reduction(kernel, reduction, axes, tiling, len(extents))
    if padding is not None:
        schedule.compute_at(padding, task, preserve_unit_loops=True)
        _vectorize_padding(kernel, padding)
    packings = _pack(kernel, reduction, order, packable)
    return Scheduled(kernel.func, "tiled reduction", packings)


def default_tiling(kernel: Fused, store: SBlockRV, axes: _Axes, cpu: Cpu) -> Tiling:
    """Fill the accumulators; cut rows where they divide among the threads, channels otherwise."""
    extents = kernel.axis_extents(store)
    blocked = kernel.blocked_axis(store) is not None
    lanes = kernel.written(store)[-1] if blocked else largest_divisor(extents[axes.lane], cpu.lanes)
    vectors_available = extents[axes.lane] // lanes
    width = extents[axes.column] if axes.column >= 0 else 1
    vectors, columns = max(
        ((v, c) for v in (1, 2, 3, 4, 6, 8) for c in range(1, cpu.accumulators + 1)
         if vectors_available % v == 0 and width % c == 0 and v * c <= cpu.accumulators),
        key=lambda tile: _reuse(*tile),
    )  # fmt: skip
    rows = extents[axes.row] if axes.row >= 0 else 1
    channel_tiles = vectors_available // vectors
    tasks, split = 1, "rows"
    if _work(kernel) >= cpu.serial_below:
        if rows % cpu.threads == 0 or rows >= 8 * cpu.threads:
            tasks = cpu.threads
        elif channel_tiles >= cpu.threads:
            tasks, split = cpu.threads, "channels"
    return Tiling(lanes, vectors, columns, tasks, "rows" if split == "rows" else "channels")


def _reuse(vectors: int, columns: int) -> tuple[bool, float]:
    """Order tiles: enough independent sums to hide the latency of a multiply-add, then few loads for each."""
    return vectors * columns >= 8, vectors * columns / (vectors + columns)


def _work(kernel: Fused) -> int:
    return prod(kernel.axis_extents(kernel.reductions[0]))


def _axes(kernel: Fused, store: SBlockRV, extents: tuple[int, ...]) -> _Axes:
    blocked = kernel.blocked_axis(store)
    if blocked is not None:  # (n, c, h, w) stored as (n, c/b, h, w, b)
        return _Axes(lane=blocked, column=3, row=2)
    wide = [axis for axis, extent in enumerate(extents) if extent > 1] or [len(extents) - 1]
    if len(wide) >= 3:  # (c, h, w): channels share the input, columns are lanes
        return _Axes(lane=wide[-1], column=wide[-3], row=wide[-2])
    return _Axes(lane=wide[-1], column=wide[-2] if len(wide) == 2 else -1, row=-1)


def _tile(kernel: Fused, store: SBlockRV, axes: _Axes, tiling: Tiling) -> tuple[LoopRV, LoopRV]:
    """Tile the storing block; return the task loop and the innermost loop over tiles."""
    schedule = kernel.schedule
    loops = list(schedule.get_loops(store))
    lane_outer, vectors, lane = schedule.split(loops[axes.lane], [None, tiling.vectors, tiling.lanes])
    outer, inner = dict(enumerate(loops)), [vectors, lane]
    outer[axes.lane] = lane_outer
    if axes.column >= 0:
        outer[axes.column], column = schedule.split(loops[axes.column], [None, tiling.columns])
        inner.insert(1, column)
    cut = axes.row if tiling.split == "rows" and axes.row >= 0 else axes.lane
    task, outer[cut] = schedule.split(outer[cut], [tiling.tasks, None])
    schedule.reorder(task, *outer.values(), *inner)
    leading = [outer[axis] for axis in range(len(loops)) if axis not in (axes.lane, axes.column, axes.row)]
    walk = [outer[axis] for axis in (axes.lane, axes.row, axes.column) if axis >= 0]
    schedule.reorder(*leading, task, *walk)
    task = schedule.fuse(*leading, task)
    if tiling.tasks > 1:
        schedule.parallel(task)
    schedule.vectorize(lane)
    for loop in inner[:-1]:
        schedule.unroll(loop)
    return task, walk[-1]


def _order_reduction(
    kernel: Fused, reduction: SBlockRV, axes: _Axes, tiling: Tiling, rank: int
) -> list[tuple[int, int, int]]:
    """Put the reduction outside the tile; return the loop order as (axis, stride, extent) parts."""
    schedule = kernel.schedule
    full = kernel.axis_extents(reduction)
    loops = list(schedule.get_loops(reduction))[-len(full) :]
    spatial, reduce = loops[:rank], list(range(rank, len(full)))
    vectors, lane = schedule.split(spatial[axes.lane], [None, tiling.lanes])
    parts: dict[int, list[tuple[LoopRV, tuple[int, int, int]]]] = {}
    within = _blocked_reduction_axes(kernel, reduction)
    for axis in reduce:
        block = within.get(axis, 1)
        if block > 1 and full[axis] % block == 0:
            outer, inner = schedule.split(loops[axis], [None, block])
            parts[axis] = [(outer, (axis, block, full[axis] // block)), (inner, (axis, 1, block))]
        else:
            parts[axis] = [(loops[axis], (axis, 1, full[axis]))]
    reduction_order = [parts[axis][0] for axis in reduce] + [parts[axis][1] for axis in reduce if len(parts[axis]) > 1]
    unrolled = [spatial[axis] for axis in range(rank) if axis not in (axes.lane, axes.column)] + [vectors]
    if axes.column >= 0:
        unrolled.append(spatial[axes.column])
    schedule.reorder(*[loop for loop, _ in reduction_order], *unrolled, lane)
    schedule.vectorize(lane)
    for loop in unrolled:
        schedule.unroll(loop)
    start = schedule.decompose_reduction(reduction, reduction_order[0][0])
    *others, last = list(schedule.get_loops(start))[-rank - 1 :]
    schedule.vectorize(last)
    for loop in others:
        schedule.unroll(loop)

    step = tiling.vectors * tiling.lanes
    outputs = [(axis, 1, full[axis]) for axis in range(rank) if axis != axes.lane]
    return [
        (axes.lane, step, full[axes.lane] // step),
        *outputs,
        *[part for _, part in reduction_order],
        (axes.lane, tiling.lanes, tiling.vectors),
        (axes.lane, 1, tiling.lanes),
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
        and _is_select(schedule.get(block).body)
    )


def _is_select(body: Any) -> bool:
    operator = getattr(getattr(body, "value", None), "op", None)
    return getattr(operator, "name", "") == "tirx.if_then_else"


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
