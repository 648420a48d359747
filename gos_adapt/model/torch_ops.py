"""ONNX operators in torch: `TORCH_OPS` maps an op type to a function of (attributes, *inputs).

Opsets 17 to 21; where an argument moved from attribute to input in between (axes of the reductions), both places are
read. An absent optional input is None. Arguments that shape the computation (axes, pads, sizes) arrive as integer
tensors and are read with `tolist`. Everything is inference: batch normalisation uses its stored statistics.

Reference: https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gos_adapt.errors import UnsupportedOperatorError

Attributes = Mapping[str, Any]
TorchOp = Callable[..., Tensor | tuple[Tensor, ...]]

_DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _ints(values: Tensor | None) -> list[int]:
    return [] if values is None else [int(value) for value in values.reshape(-1).tolist()]


def _axes(attributes: Attributes, axes: Tensor | None) -> list[int]:
    return list(attributes.get("axes", ())) or _ints(axes)


# Sliding windows: convolution and pooling.


def _window_pads(attributes: Attributes, size: tuple[int, ...], kernel: list[int]) -> tuple[list[int], list[int]]:
    """Zeros before and after each spatial axis, with `auto_pad` resolved for this input size."""
    rank = len(kernel)
    auto = attributes.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        strides = attributes.get("strides", [1] * rank)
        dilations = attributes.get("dilations", [1] * rank)
        totals = [
            max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)
        ]
        less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
        return (less, more) if auto == "SAME_UPPER" else (more, less)
    pads = attributes.get("pads", [0] * 2 * rank)
    return list(pads[:rank]), list(pads[rank:])


def _torch_pads(before: list[int], after: list[int]) -> list[int]:
    """The order of `F.pad`: last axis first, before and after interleaved."""
    return [pad for pair in zip(reversed(before), reversed(after), strict=True) for pad in pair]


def _convolution(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.dim() - 2
    before, after = _window_pads(attributes, x.shape[2:], list(weight.shape[2:]))
    if before != after:
        x, before = F.pad(x, _torch_pads(before, after)), [0] * rank
    strides = attributes.get("strides", [1] * rank)
    if set(weight.shape[2:]) == {1} and not any(before):
        # Strided 1x1 gradients are broken in channels-last order: see `instructions.convolution`.
        x, strides = x[(slice(None), slice(None), *(slice(None, None, stride) for stride in strides))], [1] * rank
    convolve: Callable[..., Tensor] = _CONVOLUTIONS[rank]
    return convolve(
        x,
        weight,
        bias,
        strides,
        before,
        attributes.get("dilations", [1] * rank),
        attributes.get("group", 1),
    )


def _transposed_convolution(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.dim() - 2
    if "output_shape" in attributes or attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise UnsupportedOperatorError("ConvTranspose with output_shape or auto_pad: export it with explicit pads")
    before, after = _window_pads(attributes, x.shape[2:], list(weight.shape[2:]))
    convolve: Callable[..., Tensor] = _TRANSPOSED[rank]
    full = convolve(
        x,
        weight,
        bias,
        stride=attributes.get("strides", [1] * rank),
        output_padding=attributes.get("output_padding", [0] * rank),
        groups=attributes.get("group", 1),
        dilation=attributes.get("dilations", [1] * rank),
    )
    return F.pad(full, [-pad for pad in _torch_pads(before, after)])


def _max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel = attributes["kernel_shape"]
    rank = len(kernel)
    before, after = _window_pads(attributes, x.shape[2:], kernel)
    if any(before) or any(after):
        x = F.pad(x, _torch_pads(before, after), value=-math.inf)
    return _MAX_POOLS[rank](
        x,
        kernel,
        attributes.get("strides", [1] * rank),
        0,
        attributes.get("dilations", [1] * rank),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )


def _average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel = attributes["kernel_shape"]
    rank = len(kernel)
    if rank > 2 or any(dilation != 1 for dilation in attributes.get("dilations", ())):
        raise UnsupportedOperatorError("AveragePool over more than 2 axes or with dilation")
    pool: Callable[..., Tensor] = F.avg_pool1d if rank == 1 else F.avg_pool2d
    before, after = _window_pads(attributes, x.shape[2:], kernel)
    stride, ceil = attributes.get("strides", [1] * rank), bool(attributes.get("ceil_mode", 0))
    if not any(before) and not any(after):
        return pool(x, kernel, stride, 0, ceil)
    pads = _torch_pads(before, after)
    pooled = pool(F.pad(x, pads), kernel, stride, 0, ceil)
    if attributes.get("count_include_pad", 0):
        return pooled
    return pooled / pool(F.pad(torch.ones_like(x[:1, :1]), pads), kernel, stride, 0, ceil)


def _spatial_axes(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


# Products and normalisation.


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.t() if attributes.get("transA", 0) else a
    b = b.t() if attributes.get("transB", 0) else b
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    return alpha * (a @ b) if c is None else torch.addmm(c, a, b, beta=beta, alpha=alpha)


def _batch_norm(
    attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, bias, eps=attributes.get("epsilon", 1e-5))


def _layer_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    shape = x.shape[attributes.get("axis", -1) % x.dim() :]
    return F.layer_norm(
        x, shape, scale.expand(shape), None if bias is None else bias.expand(shape), attributes.get("epsilon", 1e-5)
    )


def _instance_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=attributes.get("epsilon", 1e-5))


def _group_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = attributes["num_groups"]
    if len(scale) == groups:  # opset 18 scales groups, opset 21 channels
        scale, bias = (values.repeat_interleave(x.shape[1] // groups) for values in (scale, bias))
    return F.group_norm(x, groups, scale, bias, attributes.get("epsilon", 1e-5))


# Element-wise and reductions.


def _clip(_attributes: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


def _divide(_attributes: Attributes, x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _prelu(_attributes: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _fold(combine: Callable[[Tensor, Tensor], Tensor]) -> TorchOp:
    """An operator of one or more arguments from the one of two."""

    def op(_attributes: Attributes, first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = combine(first, other)
        return first

    return op


def _mean(_attributes: Attributes, *arguments: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*arguments)).mean(0)  # type: ignore[no-untyped-call]


def _elementwise(function: Callable[..., Tensor]) -> TorchOp:
    return lambda _attributes, *arguments: function(*arguments)


def _reduction(function: Callable[..., Tensor]) -> TorchOp:
    def op(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        over = _axes(attributes, axes)
        if not over and attributes.get("noop_with_empty_axes", 0):
            return x
        return function(x, tuple(over or range(x.dim())), bool(attributes.get("keepdims", 1)))

    return op


def _reduce_product(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdims)
    return x


def _arg_max(attributes: Attributes, x: Tensor) -> Tensor:
    return x.argmax(attributes.get("axis", 0), keepdim=bool(attributes.get("keepdims", 1)))


def _softmax(function: Callable[..., Tensor]) -> TorchOp:
    return lambda attributes, x: function(x, attributes.get("axis", -1))


# Shape and movement.


def _reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = _ints(shape)
    if not attributes.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(attributes: Attributes, x: Tensor) -> Tensor:
    return x.permute(attributes.get("perm", list(reversed(range(x.dim())))))


def _squeeze(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    over = _axes(attributes, axes)
    return x.squeeze(tuple(over)) if over else x.squeeze()


def _unsqueeze(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    over = _axes(attributes, axes)
    for axis in sorted(axis % (x.dim() + len(over)) for axis in over):
        x = x.unsqueeze(axis)
    return x


def _slice(
    _attributes: Attributes,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    over = _ints(axes) or list(range(starts.numel()))
    for axis, start, end, step in zip(over, _ints(starts), _ints(ends), _ints(steps) or [1] * len(over), strict=True):
        positions = range(x.shape[axis])[start:end:step]
        if step > 0:
            index: list[slice] = [slice(None)] * (axis % x.dim()) + [slice(start, end, step)]
            x = x[tuple(index)]
        else:  # torch has no negative steps
            x = x.index_select(axis, torch.tensor(list(positions), device=x.device))
    return x


def _split(attributes: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if sizes is not None:
        return torch.split_with_sizes(x, _ints(sizes), axis)
    return x.chunk(attributes["num_outputs"], axis)


def _pad(
    attributes: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    over = [axis % x.dim() for axis in _ints(axes)] or list(range(x.dim()))
    amounts = _ints(pads)
    before, after = [0] * x.dim(), [0] * x.dim()
    for i, axis in enumerate(over):
        before[axis], after[axis] = amounts[i], amounts[i + len(over)]
    mode = attributes.get("mode", "constant")
    if mode == "constant":
        return F.pad(x, _torch_pads(before, after), value=0.0 if value is None else value.item())
    if any(before[:2]) or any(after[:2]):
        raise UnsupportedOperatorError(f"Pad in mode {mode} over batch or channels")
    torch_mode = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode]
    return F.pad(x, _torch_pads(before[2:], after[2:]), mode=torch_mode)


def _gather(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = attributes.get("axis", 0) % x.dim()
    flat = indices.reshape(-1).long()
    picked = x.index_select(axis, torch.where(flat < 0, flat + x.shape[axis], flat))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _expand(_attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = _ints(shape)
    sizes = [1] * (x.dim() - len(sizes)) + sizes
    own = [1] * (len(sizes) - x.dim()) + list(x.shape)
    return x.expand([max(pair) for pair in zip(own, sizes, strict=True)])  # either size may be the 1 that is stretched


def _shape(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[attributes.get("start", 0) : attributes.get("end")], device=x.device)


def _constant_of_shape(attributes: Attributes, shape: Tensor) -> Tensor:
    value: Tensor = attributes.get("value", torch.zeros(1))
    return value.to(shape.device).expand(_ints(shape))


def _cast(attributes: Attributes, x: Tensor) -> Tensor:
    code = attributes["to"]
    if code not in _DTYPES:
        raise UnsupportedOperatorError(f"Cast to ONNX data type {code}")
    return x.to(_DTYPES[code])


def _depth_to_space(attributes: Attributes, x: Tensor) -> Tensor:
    if attributes.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, attributes["blocksize"])
    n, c, h, w = x.shape
    b = attributes["blocksize"]
    blocks = x.reshape(n, b, b, c // b**2, h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(attributes: Attributes, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = attributes["blocksize"]
    blocks = x.reshape(n, c, h // b, b, w // b, b)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


def _resize(
    attributes: Attributes,
    x: Tensor,
    _roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    mode = attributes.get("mode", "nearest")
    coordinates = attributes.get("coordinate_transformation_mode", "half_pixel")
    if sizes is not None:
        target = _ints(sizes)[2:]
    elif scales is not None:
        target = [int(n * scale) for n, scale in zip(x.shape[2:], scales.tolist()[2:], strict=True)]
    else:
        raise UnsupportedOperatorError("Resize without scales and sizes")
    exact = all(new % old == 0 for new, old in zip(target, x.shape[2:], strict=True))
    if mode == "nearest" and (exact or (coordinates, attributes.get("nearest_mode")) == ("asymmetric", "floor")):
        return F.interpolate(x, target, mode="nearest")
    if mode == "linear" and x.dim() == 4 and coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return F.interpolate(x, target, mode="bilinear", align_corners=coordinates == "align_corners")
    raise UnsupportedOperatorError(f"Resize in mode {mode} with {coordinates} coordinates to {target}")


TORCH_OPS: dict[str, TorchOp] = {
    # sliding windows
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda _, x: x.mean(_spatial_axes(x), keepdim=True),
    "GlobalMaxPool": lambda _, x: x.amax(_spatial_axes(x), keepdim=True),
    # products and normalisation
    "Gemm": _gemm,
    "MatMul": _elementwise(torch.matmul),
    "Einsum": lambda attributes, *arguments: torch.einsum(attributes["equation"], *arguments),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    # activations
    "Relu": _elementwise(F.relu),
    "LeakyRelu": lambda attributes, x: F.leaky_relu(x, attributes.get("alpha", 0.01)),
    "PRelu": _prelu,
    "Elu": lambda attributes, x: F.elu(x, attributes.get("alpha", 1.0)),
    "Selu": _elementwise(F.selu),
    "Sigmoid": _elementwise(torch.sigmoid),
    "HardSigmoid": lambda attributes, x: (attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": _elementwise(F.hardswish),
    "Tanh": _elementwise(torch.tanh),
    "Softplus": _elementwise(F.softplus),
    "Gelu": lambda attributes, x: F.gelu(x, approximate=attributes.get("approximate", "none")),
    "Mish": _elementwise(F.mish),
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "Clip": _clip,
    # element-wise
    "Abs": _elementwise(torch.abs),
    "Ceil": _elementwise(torch.ceil),
    "Cos": _elementwise(torch.cos),
    "Erf": _elementwise(torch.erf),
    "Exp": _elementwise(torch.exp),
    "Floor": _elementwise(torch.floor),
    "Log": _elementwise(torch.log),
    "Neg": _elementwise(torch.neg),
    "Reciprocal": _elementwise(torch.reciprocal),
    "Round": _elementwise(torch.round),
    "Sign": _elementwise(torch.sign),
    "Sin": _elementwise(torch.sin),
    "Sqrt": _elementwise(torch.sqrt),
    "Add": _elementwise(torch.add),
    "Sub": _elementwise(torch.sub),
    "Mul": _elementwise(torch.mul),
    "Div": _divide,
    "Pow": _elementwise(torch.pow),
    "Sum": _fold(torch.add),
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "Mean": _mean,
    "Equal": _elementwise(torch.eq),
    "Greater": _elementwise(torch.gt),
    "GreaterOrEqual": _elementwise(torch.ge),
    "Less": _elementwise(torch.lt),
    "LessOrEqual": _elementwise(torch.le),
    "And": _elementwise(torch.logical_and),
    "Or": _elementwise(torch.logical_or),
    "Not": _elementwise(torch.logical_not),
    "Where": _elementwise(torch.where),
    # reductions
    "ReduceMean": _reduction(torch.mean),
    "ReduceSum": _reduction(torch.sum),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMin": _reduction(torch.amin),
    "ReduceProd": _reduction(_reduce_product),
    "ReduceL1": _reduction(lambda x, axes, keepdims: x.abs().sum(axes, keepdims)),
    "ReduceL2": _reduction(lambda x, axes, keepdims: x.square().sum(axes, keepdims).sqrt()),
    "ReduceSumSquare": _reduction(lambda x, axes, keepdims: x.square().sum(axes, keepdims)),
    "ArgMax": _arg_max,
    # shape and movement
    "Identity": lambda _, x: x,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": lambda attributes, *arguments: torch.cat(arguments, attributes["axis"]),
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Gather": _gather,
    "Expand": _expand,
    "Tile": lambda _, x, repeats: x.repeat(_ints(repeats)),
    "Shape": _shape,
    "ConstantOfShape": _constant_of_shape,
    "Range": lambda _, start, limit, delta: torch.arange(
        start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device
    ),
    "Cast": _cast,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Resize": _resize,
}
