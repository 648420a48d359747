"""Data movement without arithmetic: slices, shifts, reshapes, and the two constants of a branch, identity and zero."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import sympy
import torch
import torch.nn.functional as F

from gos_adapt.errors import Rejection
from gos_adapt.instructions.base import Hyper, Instruction, Kind, OnnxEmitter, Shape
from gos_adapt.instructions.notation import by, term
from gos_adapt.instructions.rules import MAX_SETTING, any_shape, as_int, as_ints, integer, integers, shape_rule

if TYPE_CHECKING:
    from gos_adapt.instructions.windows import Array

Names = tuple[str, ...]
Shapes = tuple[Shape, ...]
_FEATURE = (Kind.FEATURE,)


def _int64(*values: int) -> Array:
    return np.array(values, np.int64)


def reshape_onnx(emitter: OnnxEmitter, name: str, shape: Shape) -> str:
    """Emit a reshape to `shape`, which leaves out the batch."""
    return emitter.node("Reshape", [name, emitter.constant(_int64(0, *shape))])


def slice_onnx(emitter: OnnxEmitter, name: str, axes: Shape, starts: Shape, stops: Shape, steps: Shape) -> str:
    """Emit ``name[starts:stops:steps]`` along `axes`, which count the batch."""
    bounds = [emitter.constant(_int64(*values)) for values in (starts, stops, axes, steps)]
    return emitter.node("Slice", [name, *bounds])


# channel_slice


def _channel_slice_shape(x: Shape, start: int, stop: int) -> Shape | Rejection:
    if not start < stop <= x[0]:
        return Rejection(f"channels [{start}, {stop}) of {x[0]}")
    return (stop - start, *x[1:])


def _channel_slice_onnx(emitter: OnnxEmitter, names: Names, _shapes: Shapes, hyper: Hyper) -> str:
    return slice_onnx(emitter, names[0], (1,), (as_int(hyper["start"]),), (as_int(hyper["stop"]),), (1,))


# pad_channels


def _pad_channels_onnx(emitter: OnnxEmitter, names: Names, shapes: Shapes, hyper: Hyper) -> str:
    rest = (0,) * (len(shapes[0]) - 1)
    pads = _int64(0, as_int(hyper["before"]), *rest, 0, as_int(hyper["after"]), *rest)
    return emitter.node("Pad", [names[0], emitter.constant(pads)])


def _pad_channels_numpy(x: Array, before: int, after: int) -> Array:
    return np.pad(x, ((0, 0), (before, after)) + ((0, 0),) * (x.ndim - 2))


def _pad_channels_torch(x: torch.Tensor, before: int, after: int) -> torch.Tensor:
    return F.pad(x, (0, 0) * (x.ndim - 2) + (before, after))


# subsample


def _subsample_shape(x: Shape, stride: Shape) -> Shape:
    return (x[0], -(-x[1] // stride[0]), -(-x[2] // stride[1]))


def _subsample_onnx(emitter: OnnxEmitter, names: Names, shapes: Shapes, hyper: Hyper) -> str:
    return slice_onnx(emitter, names[0], (2, 3), (0, 0), shapes[0][1:], as_ints(hyper["stride"]))


# shift


def _shift_shape(x: Shape, offset: Shape) -> Shape | Rejection:
    if abs(offset[0]) >= x[1] or abs(offset[1]) >= x[2]:
        return Rejection(f"shifting {x} by {offset} leaves nothing")
    return x


def _shift_spans(
    size: Shape, offset: Shape
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]:
    """For height and width: the (start, stop) kept, then the zeros (before, after) put around it."""
    (h, w), (dh, dw) = size, offset
    return (
        (max(-dh, 0), h - max(dh, 0)),
        (max(-dw, 0), w - max(dw, 0)),
        (max(dh, 0), max(-dh, 0)),
        (max(dw, 0), max(-dw, 0)),
    )


def _shift_numpy(x: Array, offset: Shape) -> Array:
    rows, columns, around_rows, around_columns = _shift_spans(x.shape[2:], offset)
    return np.pad(x[:, :, slice(*rows), slice(*columns)], ((0, 0), (0, 0), around_rows, around_columns))


def _shift_torch(x: torch.Tensor, offset: Shape) -> torch.Tensor:
    dh, dw = offset
    return F.pad(x, (dw, -dw, dh, -dh))


def _shift_onnx(emitter: OnnxEmitter, names: Names, shapes: Shapes, hyper: Hyper) -> str:
    # ONNX allows negative pads (a crop), but not every compiler does: slice, then pad.
    (top, bottom), (left, right), (above, below), (before, after) = _shift_spans(
        shapes[0][1:], as_ints(hyper["offset"])
    )
    kept = slice_onnx(emitter, names[0], (2, 3), (top, left), (bottom, right), (1, 1))
    return emitter.node("Pad", [kept, emitter.constant(_int64(0, 0, above, before, 0, 0, below, after))])


# channel_shuffle


def _channel_shuffle_shape(x: Shape, groups: int) -> Shape | Rejection:
    return Rejection(f"{groups} groups do not divide {x[0]} channels") if x[0] % groups else x


def _channel_shuffle_numpy(x: Array, groups: int) -> Array:
    n, c = x.shape[:2]
    return x.reshape(n, groups, c // groups, *x.shape[2:]).swapaxes(1, 2).reshape(x.shape)


def _channel_shuffle_torch(x: torch.Tensor, groups: int) -> torch.Tensor:
    n, c = x.shape[:2]
    return x.reshape(n, groups, c // groups, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def _channel_shuffle_onnx(emitter: OnnxEmitter, names: Names, shapes: Shapes, hyper: Hyper) -> str:
    (c, *rest), groups = shapes[0], as_int(hyper["groups"])
    split = reshape_onnx(emitter, names[0], (groups, c // groups, *rest))
    swapped = emitter.node("Transpose", [split], perm=[0, 2, 1, *range(3, 3 + len(rest))])
    return reshape_onnx(emitter, swapped, shapes[0])


# reshape


def _reshape_shape(x: Shape, shape: Shape) -> Shape | Rejection:
    return shape if math.prod(x) == math.prod(shape) else Rejection(f"{x} does not hold as many elements as {shape}")


# upsample


def _upsample_onnx(emitter: OnnxEmitter, names: Names, _shapes: Shapes, hyper: Hyper) -> str:
    scales = np.array((1, 1, *as_ints(hyper["factor"])), np.float32)
    return emitter.node(
        "Resize",
        [names[0], "", emitter.constant(scales)],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


# zero


def _zero_onnx(emitter: OnnxEmitter, names: Names, _shapes: Shapes, hyper: Hyper) -> str:
    batch = emitter.node("Shape", [names[0]], start=0, end=1)
    shape = emitter.node("Concat", [batch, emitter.constant(_int64(*as_ints(hyper["shape"])))], axis=0)
    return emitter.node("ConstantOfShape", [shape])


ROWS = (
    Instruction(
        name="identity",
        arguments=_FEATURE,
        infer=shape_rule(lambda x: x, None),
        numpy=lambda x: x,
        torch=lambda x: x,
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("Identity", list(names)),
        equation=lambda x: x,
    ),
    Instruction(
        name="zero",
        arguments=_FEATURE,
        infer=shape_rule(lambda _x, shape: shape, None, shape=any_shape()),
        numpy=lambda x, shape: np.zeros((x.shape[0], *shape), x.dtype),
        torch=lambda x, shape: x.new_zeros((x.shape[0], *shape)),
        onnx=_zero_onnx,
        equation=lambda _x, shape: sympy.Integer(0),
    ),
    Instruction(
        name="channel_slice",
        arguments=_FEATURE,
        infer=shape_rule(_channel_slice_shape, None, start=integer(0), stop=integer()),
        numpy=lambda x, start, stop: x[:, start:stop],
        torch=lambda x, start, stop: x[:, start:stop],
        onnx=_channel_slice_onnx,
        hyperparameters={
            "start": (0, 4, 8, 16, 32, 64, 128, 256),
            "stop": (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512),
        },
        equation=term("slice", lambda start, stop: f"{start}:{stop}"),
    ),
    Instruction(
        name="pad_channels",
        arguments=_FEATURE,
        infer=shape_rule(
            lambda x, before, after: (x[0] + before + after, *x[1:]), None, before=integer(0), after=integer(0)
        ),
        numpy=_pad_channels_numpy,
        torch=_pad_channels_torch,
        onnx=_pad_channels_onnx,
        hyperparameters={"before": (0, 4, 8, 16, 32, 64), "after": (0, 4, 8, 16, 32, 64)},
        equation=term("pad", lambda before, after: f"{before}, {after}"),
    ),
    Instruction(
        name="subsample",
        arguments=_FEATURE,
        infer=shape_rule(_subsample_shape, 3, stride=integers(2)),
        numpy=lambda x, stride: x[:, :, :: stride[0], :: stride[1]],
        torch=lambda x, stride: x[:, :, :: stride[0], :: stride[1]],
        onnx=_subsample_onnx,
        hyperparameters={"stride": ((2, 2), (4, 4), (1, 2), (2, 1))},
        equation=term("subsample", lambda stride: by(stride)),
    ),
    Instruction(
        name="shift",
        arguments=_FEATURE,
        infer=shape_rule(_shift_shape, 3, offset=integers(2, low=-MAX_SETTING)),
        numpy=_shift_numpy,
        torch=_shift_torch,
        onnx=_shift_onnx,
        hyperparameters={"offset": ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))},
        equation=term("shift", lambda offset: "{}, {}".format(*offset)),
    ),
    Instruction(
        name="channel_shuffle",
        arguments=_FEATURE,
        infer=shape_rule(_channel_shuffle_shape, None, groups=integer()),
        numpy=_channel_shuffle_numpy,
        torch=_channel_shuffle_torch,
        onnx=_channel_shuffle_onnx,
        hyperparameters={"groups": (2, 4, 8, 16)},
        equation=term("shuffle", lambda groups: str(groups)),
    ),
    Instruction(
        name="reshape",
        arguments=_FEATURE,
        infer=shape_rule(_reshape_shape, None, shape=any_shape()),
        numpy=lambda x, shape: x.reshape(x.shape[0], *shape),
        torch=lambda x, shape: x.reshape(x.shape[0], *shape),
        onnx=lambda emitter, names, _shapes, hyper: reshape_onnx(emitter, names[0], as_ints(hyper["shape"])),
        equation=term("reshape", lambda shape: by(shape)),
    ),
    Instruction(
        name="transpose",
        arguments=_FEATURE,
        infer=shape_rule(lambda x: x[::-1], 2),
        numpy=lambda x: x.swapaxes(1, 2),
        torch=lambda x: x.transpose(1, 2),
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("Transpose", list(names), perm=[0, 2, 1]),
        equation=term("transpose"),
    ),
    Instruction(
        name="flatten",
        arguments=_FEATURE,
        infer=shape_rule(lambda x: (math.prod(x),), None),
        numpy=lambda x: x.reshape(x.shape[0], -1),
        torch=lambda x: x.flatten(1),
        onnx=lambda emitter, names, _shapes, _hyper: emitter.node("Flatten", list(names), axis=1),
        equation=term("flatten"),
    ),
    Instruction(
        name="upsample",
        arguments=_FEATURE,
        infer=shape_rule(lambda x, factor: (x[0], x[1] * factor[0], x[2] * factor[1]), 3, factor=integers(2)),
        numpy=lambda x, factor: x.repeat(factor[0], axis=2).repeat(factor[1], axis=3),
        torch=lambda x, factor: x.repeat_interleave(factor[0], dim=2).repeat_interleave(factor[1], dim=3),
        onnx=_upsample_onnx,
        hyperparameters={"factor": ((2, 2), (4, 4), (1, 2), (2, 1))},
        equation=term("upsample", lambda factor: by(factor)),
    ),
)
