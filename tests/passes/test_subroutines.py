from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import onnx
import psutil
import pytest
from compiling import Array, expected, graph, lowered, outputs_of, random
from onnx import helper

from device_targets import host
from gos_adapt.errors import ConfigError
from tvm_passes.block_layouts import BlockLayouts
from tvm_passes.build import build_model, cpu_of, export, target_of
from tvm_passes.compat import IRBuilder, IRModule, PassContext, TirBuilder, relax, tvm
from tvm_passes.object_files import ObjectFiles
from tvm_passes.schedules import Cpu
from tvm_passes.subroutines import separate

if TYPE_CHECKING:
    from pathlib import Path

    from tvm_passes.pipeline import Lowered

CPU = cpu_of(host())


def layers(*channels: int, softmax: bool = False) -> onnx.ModelProto:
    """A chain of 3x3 convolutions."""
    nodes, stored = [], {}
    names = ["x", *(f"t{i}" for i in range(1, len(channels) - 1)), "c" if softmax else "y"]
    for i, (taken, given) in enumerate(itertools.pairwise(channels)):
        stored[f"w{i}"] = random(given, taken, 3, 3, seed=i) / (3 * taken**0.5)
        nodes.append(
            helper.make_node("Conv", [names[i], f"w{i}"], [names[i + 1]], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        )
    if softmax:
        nodes.append(helper.make_node("Softmax", ["c"], ["y"], axis=1))
    return graph(nodes, (1, channels[0], 16, 16), stored, {"y": 4})


def run(path: Path, array: Array) -> Array:
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
    found: Array = machine["main"](tvm.runtime.tensor(array)).numpy()
    return found


def check(proto: onnx.ModelProto, result: Lowered, objects: ObjectFiles, path: Path) -> None:
    export(result, host(), path, objects)
    array = random(*(dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim), seed=9)
    (wanted,) = expected(proto, array)
    np.testing.assert_allclose(run(path, array), wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_what_is_exported_computes_what_the_module_in_one_piece_computes(tmp_path: Path) -> None:
    proto = layers(8, 16, 8)
    array = random(1, 8, 16, 16)
    build_model(proto, host(), 1, tmp_path / "m.so")
    (whole,) = outputs_of(lowered(proto, CPU), array)
    np.testing.assert_array_equal(run(tmp_path / "m.so", array), whole)


def test_kernels_that_need_memory_of_their_own_get_it(tmp_path: Path) -> None:
    proto = layers(8, 16, softmax=True)  # row sums and exponentials: 64 KiB, which TVM allocates on the heap
    with ObjectFiles(tmp_path) as objects:
        check(proto, lowered(proto, CPU), objects, tmp_path / "m.so")


def test_memory_that_kernels_took_is_given_back(tmp_path: Path) -> None:
    build_model(layers(8, 16, softmax=True), host(), 1, tmp_path / "m.so")
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(tmp_path / "m.so")), tvm.cpu())
    array = tvm.runtime.tensor(random(1, 8, 16, 16))
    for _ in range(20):
        machine["main"](array)
    before = psutil.Process().memory_info().rss
    for _ in range(1000):  # at 16 KiB for the exponentials alone
        machine["main"](array)
    assert psutil.Process().memory_info().rss - before < 4 * 2**20


def test_equal_kernels_of_two_models_are_compiled_once(tmp_path: Path) -> None:
    small, large = layers(8, 16, 8), layers(8, 16, 8, 16, 8)
    with ObjectFiles(tmp_path) as objects:
        check(small, lowered(small, CPU), objects, tmp_path / "small.so")
        compiled = set(tmp_path.glob("*.o"))
        check(small, lowered(small, CPU), objects, tmp_path / "again.so")
        assert set(tmp_path.glob("*.o")) == compiled
        check(large, lowered(large, CPU), objects, tmp_path / "large.so")
    # The kernels inside (blocked on both sides) are new, that of the model's own input is not.
    kernels = separate(lowered(large, CPU).module).kernels
    assert 0 < len(set(tmp_path.glob("*.o")) - compiled) < len(kernels)


def test_a_symbol_says_which_code_it_is() -> None:
    def symbols(proto: onnx.ModelProto) -> set[str]:
        return set(separate(lowered(proto, CPU).module).kernels)

    assert symbols(layers(8, 16, 8)) == symbols(layers(8, 16, 8))
    assert symbols(layers(8, 16, 8)).isdisjoint(symbols(layers(8, 24, 8)))


def test_the_rest_of_the_module_has_no_kernel_left() -> None:
    separated = separate(lowered(layers(8, 16, 8), CPU).module)
    assert {variable.name_hint for variable, _ in separated.module.functions_items()} == {"main", "main_sequence"}
    assert len(separated.kernels) == 2


def test_a_folder_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    with ObjectFiles(tmp_path / "gone") as objects, pytest.raises(ConfigError, match=r"gone/kernel_1\.o: No such file"):
        export(lowered(layers(8, 16), CPU), host(), tmp_path / "m.so", objects)


def test_a_full_disk_is_not_the_models_fault(tmp_path: Path) -> None:
    (tmp_path / "kernel_1.o").symlink_to("/dev/full")
    says = rf"kernel_1\.o: No space left on device; see that {tmp_path} has room"
    with ObjectFiles(tmp_path) as objects, pytest.raises(ConfigError, match=says):
        export(lowered(layers(8, 16), CPU), host(), tmp_path / "m.so", objects)


def test_parameters_of_one_name_are_blocked_each_in_its_own_way() -> None:
    """Three feature maps named alike, as fusing makes them of operators whose tensors have one name."""
    shape = (1, 16, 4, 4)
    with IRBuilder() as builder:
        with TirBuilder.prim_func(s_tir=True):
            TirBuilder.func_name("add")
            left, right, result = (TirBuilder.arg("lv", TirBuilder.Buffer(shape, "float32")) for _ in range(3))
            with TirBuilder.grid(*shape) as (n, c, h, w), TirBuilder.sblock("add"):
                at = [TirBuilder.axis.spatial(size, i) for size, i in zip(shape, (n, c, h, w), strict=True)]
                TirBuilder.reads(left[tuple(at)], right[tuple(at)])
                TirBuilder.writes(result[tuple(at)])
                TirBuilder.buffer_store(result, left[tuple(at)] - right[tuple(at)], at)
        kernel = builder.get().without_attr("global_symbol")
    blocks = relax.BlockBuilder()
    type_ = relax.TensorType(shape, "float32")
    x, y = relax.Var("x", type_), relax.Var("y", type_)
    with blocks.function("main", [x, y]):
        with blocks.dataflow():
            variable = blocks.add_func(kernel, "subtract")
            first = blocks.emit(relax.call_tir(variable, [x, y], type_))
            second = blocks.emit_output(relax.call_tir(variable, [first, y], type_))
        blocks.emit_func_output(second)
    with PassContext():
        module = BlockLayouts(Cpu(lanes=8, registers=16, threads=1))(IRModule(blocks.get().functions))
    arrays = [random(*shape, seed=seed) for seed in (1, 2)]
    machine = relax.VirtualMachine(tvm.compile(module, target_of(host())), tvm.cpu())
    found = machine["main"](*(tvm.runtime.tensor(array) for array in arrays)).numpy()
    np.testing.assert_allclose(found, arrays[0] - 2 * arrays[1], atol=1e-6)
