from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from compiling import Array, expected, graph, outputs_of, random
from onnx import helper

from gos_adapt.errors import Rejection
from tvm_passes.frontend import import_onnx
from tvm_passes.pipeline import fuse, schedule
from tvm_passes.schedules import RULES, Cpu, Scheduled, Variant, schedule_kernel, variants
from tvm_passes.schedules.kernel import Fused
from tvm_passes.schedules.winograd import WINOGRAD
from tvm_passes.schedules.winograd_transforms import INPUT_TRANSFORMS, OUTPUT_TRANSFORMS, WEIGHT_TRANSFORMS

if TYPE_CHECKING:
    from tvm_passes.compat import PrimFunc
    from tvm_passes.pipeline import Lowered

AVX2 = Cpu(lanes=8, registers=16, threads=2)
AVX512 = Cpu(lanes=16, registers=32, threads=2)
NEON = Cpu(lanes=4, registers=32, threads=4)
TOLERANCE = {2: 1e-5, 4: 5e-5}
AROUND = (1, 1, 1, 1)


def conv(source: str, target: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, f"w_{target}", f"b_{target}"], [target], **attributes)


def weights(target: str, *shape: int, seed: int = 1) -> dict[str, Array]:
    fan_in = np.float32(np.prod(shape[1:]))
    return {f"w_{target}": random(*shape, seed=seed) / np.sqrt(fan_in), f"b_{target}": random(shape[0], seed=seed + 1)}


def layer(
    channels: tuple[int, int], size: tuple[int, int], window: int = 3, batch: int = 1, **attributes: Any
) -> onnx.ModelProto:
    """A convolution with bias and activation between two layers, so that it reads and writes blocks."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        conv("r", "c", **attributes),
        helper.make_node("Relu", ["c"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["y"], kernel_shape=[2, 2]),
    ]
    inputs, outputs = channels
    stored = weights("c", outputs, inputs // attributes.get("group", 1), window, window)
    return graph(nodes, (batch, inputs, *size), stored, {"y": 4})


def network(channels: int, size: tuple[int, int]) -> onnx.ModelProto:
    """A first layer that reads the model's input, a residual one, and a last one that writes the model's output."""
    nodes = [
        conv("x", "c0", pads=AROUND),
        helper.make_node("Relu", ["c0"], ["r0"]),
        conv("r0", "c1", pads=AROUND),
        helper.make_node("Add", ["c1", "r0"], ["a"]),
        helper.make_node("Relu", ["a"], ["r1"]),
        conv("r1", "y", pads=AROUND),
    ]
    shape = (channels, channels, 3, 3)
    stored = weights("c0", *shape) | weights("c1", *shape, seed=3) | weights("y", *shape, seed=5)
    return graph(nodes, (1, channels, *size), stored, {"y": 4})


def by_winograd(proto: onnx.ModelProto, cpu: Cpu, tile: int, split: str | None = None, *, batch: int = 1) -> Lowered:
    """Lower with every convolution that can be in tiles of `tile`."""
    fused = fuse(import_onnx(proto, batch), cpu)

    def choose(key: str) -> Variant | None:
        guesses = WINOGRAD.settings(Fused(fused.kernels[key][0]), cpu, None)
        if isinstance(guesses, Rejection):
            return None
        guess = next(guess for guess in guesses if guess.tile == tile)
        return Variant("winograd", replace(guess, split=split or guess.split))

    return schedule(fused, cpu, choose)


def assert_computes_what_onnx_runtime_computes(
    proto: onnx.ModelProto, cpu: Cpu, tile: int, split: str | None = None
) -> None:
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    array, result = random(*shape, seed=9), by_winograd(proto, cpu, tile, split, batch=shape[0])
    convolutions = sum(node.op_type == "Conv" for node in proto.graph.node)
    assert [kernel.rule for kernel in result.kernels].count("winograd") == convolutions
    (got,), (wanted,) = outputs_of(result, array), expected(proto, array)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE[tile] * np.abs(wanted).max())


def kernel(proto: onnx.ModelProto, cpu: Cpu = AVX2) -> tuple[PrimFunc, frozenset[int]]:
    """The kernel that computes ``c`` of a `layer`."""
    fused = fuse(import_onnx(proto, 1), cpu)
    (found,) = [entry for entry in fused.kernels.values() if entry[1]]
    return found


LAYERS = {
    "16 to 16 channels": layer((16, 16), (32, 32), pads=AROUND),
    "24 to 40 channels and asymmetric pads": layer((24, 40), (13, 11), pads=[0, 2, 1, 0]),
    "no padding": layer((16, 32), (14, 18)),
    "a map smaller than a tile": layer((16, 16), (3, 2), pads=AROUND),
    "two images": layer((16, 16), (7, 7), batch=2, pads=AROUND),
}

RESNET_18 = {
    "64 channels": layer((64, 64), (56, 56), pads=AROUND),
    "128 channels": layer((128, 128), (28, 28), pads=AROUND),
    "256 channels": layer((256, 256), (14, 14), pads=AROUND),
    "512 channels": layer((512, 512), (7, 7), pads=AROUND),
}


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("cpu", [AVX2, AVX512, NEON], ids=["avx2", "avx512", "neon"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_what_onnx_runtime_computes(name: str, cpu: Cpu, tile: int) -> None:
    assert_computes_what_onnx_runtime_computes(LAYERS[name], cpu, tile)


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("name", RESNET_18)
def test_a_layer_of_resnet_18_computes_what_onnx_runtime_computes(name: str, tile: int) -> None:
    assert_computes_what_onnx_runtime_computes(RESNET_18[name], AVX512, tile)


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("split", ["nothing", "tiles", "channels"])
def test_first_residual_and_last_layers_compute_what_onnx_runtime_computes(split: str, tile: int) -> None:
    assert_computes_what_onnx_runtime_computes(network(32, (14, 9)), AVX2, tile, split)


@pytest.mark.parametrize("m", [2, 4])
def test_the_transforms_are_exactly_a_window_of_three(m: int) -> None:
    inputs = [Fraction(value) for value in (3, -1, 4, 1, -5, 9)[: m + 2]]
    window = [Fraction(value) for value in (2, -7, 5)]
    matrix = [[Fraction(value).limit_denominator(24) for value in row] for row in WEIGHT_TRANSFORMS[m]]
    factors = [sum((a * b for a, b in zip(row, window, strict=True)), Fraction()) for row in matrix]
    products = [a * b for a, b in zip(INPUT_TRANSFORMS[m](*inputs), factors, strict=True)]
    wanted = [sum((inputs[i + k] * window[k] for k in range(3)), Fraction()) for i in range(m)]
    assert list(OUTPUT_TRANSFORMS[m](*products)) == wanted


@pytest.mark.parametrize("cpu", [AVX2, AVX512, NEON], ids=["avx2", "avx512", "neon"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_setting_and_neighbour_worth_measuring_schedules(name: str, cpu: Cpu) -> None:
    func, constants = kernel(LAYERS[name], cpu)
    first = WINOGRAD.settings(Fused(func), cpu, None)
    assert not isinstance(first, Rejection)
    assert len(set(first)) == len(first) <= 6
    assert {knobs.tile for knobs in first} == {2, 4}
    for best in first:
        near = WINOGRAD.settings(Fused(func), cpu, best)
        assert best not in near
        for knobs in [best, *near]:
            variant = Variant("winograd", knobs)
            assert Variant.parse(variant.to_text(), RULES) == variant
            assert isinstance(schedule_kernel(func, cpu, constants, variant), Scheduled)


@pytest.mark.parametrize(
    ("channels", "size", "guess", "tile"),
    [(16, 32, "winograd", 4), (128, 28, "winograd", 4), (256, 14, "winograd", 2), (512, 7, "tiled reduction", None)],
)
def test_a_kernel_nobody_measured_gets_the_largest_tile_whose_weights_stay_in_cache(
    channels: int, size: int, guess: str, tile: int | None
) -> None:
    found = variants(kernel(layer((channels, channels), (size, size), pads=AROUND, kernel_shape=[3, 3]))[0], AVX512)
    assert not isinstance(found, Rejection)
    assert found[0].rule == guess
    assert getattr(found[0].knobs, "tile", None) == tile
    assert {"winograd", "tiled reduction"} <= {variant.rule for variant in found}


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (layer((16, 16), (12, 12), pads=AROUND, strides=[2, 2]), "stride"),
        (layer((16, 16), (12, 12), pads=[2, 2, 2, 2], dilations=[2, 2]), "gaps"),
        (layer((16, 32), (12, 12), pads=AROUND, group=4), "does not move over a feature map"),
        (layer((16, 16), (12, 12), pads=AROUND, group=16), "does not move over a feature map"),
        (layer((16, 16), (12, 12), window=5, pads=[2, 2, 2, 2]), "the window is 5x5, takes 3x3"),
        (layer((16, 16), (12, 12), window=1), "the window is 1x1, takes 3x3"),
        (layer((3, 16), (12, 12), pads=AROUND), "3 to 16 channels do not divide into vectors"),
    ],
    ids=["stride", "dilation", "groups", "depthwise", "5x5", "1x1", "three channels"],
)
def test_other_convolutions_are_declined_with_a_reason(proto: onnx.ModelProto, reason: str) -> None:
    declined = WINOGRAD.settings(Fused(kernel(proto)[0]), AVX2, None)
    assert isinstance(declined, Rejection)
    assert reason in declined.reason


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3]), "does not sum products"),
        (helper.make_node("Relu", ["x"], ["y"]), "0 reductions"),
        (helper.make_node("MatMul", ["x", "x"], ["y"]), "does not sum over all channels and a window"),
    ],
    ids=["pool", "element-wise", "product"],
)
def test_other_kernels_are_declined_with_a_reason(node: onnx.NodeProto, reason: str) -> None:
    fused = fuse(import_onnx(graph([node], (1, 16, 8, 8), {}, {"y": 4}), 1), AVX2)
    ((func, _),) = fused.kernels.values()
    declined = WINOGRAD.settings(Fused(func), AVX2, None)
    assert isinstance(declined, Rejection)
    assert reason in declined.reason


def test_weights_that_are_not_constant_are_declined() -> None:
    func, _ = kernel(LAYERS["16 to 16 channels"])
    (knobs, *_) = WINOGRAD.settings(Fused(func), AVX2, None)
    declined = schedule_kernel(func, AVX2, frozenset(), Variant("winograd", knobs))
    assert isinstance(declined, Rejection)
    assert declined.reason == "the weights are not constant"


@pytest.mark.parametrize(
    "change", [{"vectors": 3}, {"block": 8, "columns": 3}, {"tile": 3}, {"block": 0}, {"split": "rows"}]
)
def test_knobs_of_another_kernel_are_declined(change: dict[str, Any]) -> None:
    func, constants = kernel(LAYERS["16 to 16 channels"])
    (knobs, *_) = WINOGRAD.settings(Fused(func), AVX2, None)
    declined = schedule_kernel(func, AVX2, constants, Variant("winograd", replace(knobs, **change)))
    assert isinstance(declined, Rejection)
    assert "does not fit 16 channels" in declined.reason
