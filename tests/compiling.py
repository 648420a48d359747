"""Builders shared by the compiler's tests: small ONNX graphs, and running what was made of them in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from device_targets import host
from tvm_passes.build import target_of
from tvm_passes.compat import relax, tvm
from tvm_passes.frontend import import_onnx
from tvm_passes.pipeline import Lowered, lower

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvm_passes.schedules import Cpu

Array = np.ndarray[Any, Any]


def graph(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...], weights: dict[str, Array], outputs: dict[str, int]
) -> onnx.ModelProto:
    """Return a checked model of one input ``x`` of `shape`; `outputs` gives each output's rank."""
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name, rank in outputs.items()],
            [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    proto = onnx.shape_inference.infer_shapes(proto)
    onnx.checker.check_model(proto)
    return proto


def lowered(proto: onnx.ModelProto, cpu: Cpu, *, batch: int = 1) -> Lowered:
    """Import and lower."""
    return lower(import_onnx(proto, batch), cpu)


def generated(executable: Any, form: str) -> str:
    """Return what LLVM made of a compiled module: its ``asm``, or its ``ll``."""

    def modules(module: Any) -> Iterator[Any]:
        yield module
        for imported in module.imports:
            yield from modules(imported)

    return "".join(module.inspect_source(form) for module in modules(executable.mod) if module.kind == "llvm")


def outputs_of(result: Lowered, *inputs: Array) -> list[Array]:
    """Compile for this machine and run ``main``."""
    machine = relax.VirtualMachine(tvm.compile(result.module, target_of(host())), tvm.cpu())
    got = machine["main"](*(tvm.runtime.tensor(array) for array in inputs))
    return [got.numpy()] if hasattr(got, "numpy") else [value.numpy() for value in got]


def expected(proto: onnx.ModelProto, array: Array) -> list[Array]:
    """What ONNX Runtime computes."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": array}))


def random(*shape: int, seed: int = 0) -> Array:
    """Return a standard normal array."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
