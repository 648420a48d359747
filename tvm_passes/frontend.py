"""Import an ONNX graph, remembering which ONNX tensor every Relax variable stands for."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import onnx

from gos_adapt.errors import ModelImportError, last_line
from gos_adapt.instructions.schedule_hints import from_remark
from tvm_passes.compat import IRModule, from_onnx, mutator, relax
from tvm_passes.schedules.kernel import HINTS


def import_onnx(proto: onnx.ModelProto, batch: int) -> IRModule:
    """Import a canonical ONNX graph for one batch size; each variable is named after the ONNX tensor it computes.

    TVM's importer drops the names of intermediate tensors, and with them every trace from a kernel back to the model.
    So the graph is imported with all tensors as outputs, which gives the variable of each, and then cut back.

    What nodes say about the schedule of their kernels (`gos_adapt.instructions.schedule_hints`) becomes the attribute
    `HINTS` of ``main``: tensor -> knob -> value.

    Args:
        proto: Canonical graph (`gos_adapt.model.Model.proto`).
        batch: What every dynamic dimension becomes.

    Raises:
        ModelImportError: when TVM's importer fails on this graph.
    """
    every = copy.deepcopy(proto)
    tensors = [name for node in every.graph.node for name in node.output if name]
    wanted = {output.name for output in proto.graph.output}
    every.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in wanted)
    initialised = {tensor.name for tensor in every.graph.initializer}
    shapes = {
        value.name: [d.dim_value if d.HasField("dim_value") else batch for d in value.type.tensor_type.shape.dim]
        for value in every.graph.input
        if value.name not in initialised
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Renaming name ...": names are restored here
            module = from_onnx(every, shape_dict=shapes, sanitize_input_names=True)
    except Exception as failure:
        raise ModelImportError(f"TVM's ONNX importer failed on this model: {last_line(failure)}") from failure
    names = [output.name for output in every.graph.output]
    module = _keep_outputs(module, names, len(proto.graph.output), {name: i for i, name in enumerate(tensors)})
    hints = {name: hint for node in proto.graph.node if (hint := from_remark(node.doc_string)) for name in node.output}
    if hints:
        module.update_func(module.get_global_var("main"), module["main"].with_attr(HINTS, hints))
    return module


def _keep_outputs(module: IRModule, names: list[str], keep: int, order: dict[str, int]) -> IRModule:
    """Name each variable after its tensor and return only the first `keep` outputs."""
    main = module["main"]
    result = main.body.body
    bound = {binding.var: binding.value for block in main.body.blocks for binding in block.bindings}
    outputs = list(bound[result].fields) if isinstance(bound[result], relax.Tuple) else [result]
    tensor_of: dict[Any, str] = {}
    for var, name in sorted(zip(outputs, names, strict=True), key=lambda pair: order.get(pair[1], -1)):
        tensor_of.setdefault(var, name)  # a variable may stand for several tensors: it is the first that computes it
    if keep == 1:
        tensor_of[result] = names[0]
    renamer = _Renamer(module, result, tensor_of, keep)
    renamer.builder_.update_func(module.get_global_var("main"), renamer.visit_expr(main))
    return relax.transform.DeadCodeElimination(["main"])(renamer.builder_.get())


@mutator
class _Renamer(relax.PyExprMutator):  # type: ignore[misc]
    """Variables on the way to a tensor take that tensor's name, until the next tensor begins."""

    def __init__(self, module: IRModule, result: Any, tensor_of: dict[Any, str], keep: int) -> None:
        super().__init__(module)
        self.result, self.tensor_of, self.keep = result, tensor_of, keep
        self.name_of: dict[Any, str] = {}
        waiting: list[Any] = []
        for block in module["main"].body.blocks:
            for binding in block.bindings:
                waiting.append(binding.var)
                if binding.var in tensor_of:
                    self.name_of.update(dict.fromkeys(waiting, tensor_of[binding.var]))
                    waiting.clear()

    def visit_var_binding_(self, binding: Any) -> None:
        value = binding.value
        if binding.var.same_as(self.result) and isinstance(value, relax.Tuple):
            kept = list(value.fields)[: self.keep]
            value = kept[0] if self.keep == 1 else relax.Tuple(kept)
        value = self.builder_.normalize(self.visit_expr(value))
        var = type(binding.var)(self.name_of.get(binding.var, binding.var.name), value.ty)
        self.set_var_remap(binding.var, var)
        self.builder_.emit_normalized(relax.VarBinding(var, value))
