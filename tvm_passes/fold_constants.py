"""Fold in numpy what an importer makes of constants: views of them, and the bounds of clips.

TVM's `FoldConstant` compiles and runs a kernel for each of these, at 25-40 ms apiece. A canonical model holds nothing
else to fold, so little is left for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_passes.compat import Constant, IRModule, PassContext, module_pass, mutator, relax

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, Any]


def _reshape(call: Any, array: Array, *_shape: Array) -> Array:
    return array.reshape([int(size) for size in call.ty.shape])


def _permute(call: Any, array: Array) -> Array:
    return array.transpose(None if call.attrs.axes is None else [int(axis) for axis in call.attrs.axes])


FOLDS: dict[str, Callable[..., Array]] = {
    "relax.expand_dims": _reshape,
    "relax.flatten": _reshape,
    "relax.isnan": lambda _call, array: np.isnan(array),
    "relax.permute_dims": _permute,
    "relax.reshape": _reshape,
    "relax.squeeze": _reshape,
    "relax.where": lambda _call, condition, yes, no: np.asarray(np.where(condition, yes, no)),
}


@module_pass(opt_level=0, name="FoldConstants")
class FoldConstants:
    """Replace a call in `FOLDS` whose tensors are all constant by its value."""

    def transform_module(self, module: IRModule, _context: PassContext) -> IRModule:
        """Apply the pass."""
        folder = _Folder(module)
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                folder.builder_.update_func(variable, folder.visit_expr(function))
        return folder.builder_.get()


@mutator
class _Folder(relax.PyExprMutator):  # type: ignore[misc]
    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        fold = FOLDS.get(getattr(call.op, "name", ""))
        if fold is None:
            return call
        arguments = [self._value(argument) for argument in call.args if not isinstance(argument, relax.ShapeExpr)]
        if not all(isinstance(argument, Constant) for argument in arguments):
            return call
        array = fold(call, *(argument.value.numpy() for argument in arguments))
        return relax.const(np.ascontiguousarray(array).reshape(array.shape), str(array.dtype))

    def _value(self, argument: Any) -> Any:
        return self.lookup_binding(argument) if isinstance(argument, relax.Var) else argument
