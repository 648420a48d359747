"""Walk and rewrite the kernel calls (`call_tir`) of a module: what every graph pass here does."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tvm_passes.compat import Constant, IRModule, PrimFunc, mutator, relax, tvm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@dataclass(frozen=True)
class KernelCall:
    """One binding ``var = call_tir(kernel, args)``.

    Attributes:
        function: Name of the Relax function it stands in.
        var: The Relax variable it binds.
        kernel: Name of the kernel's PrimFunc.
        func: The PrimFunc.
        args: Relax expressions; constants are `relax.Constant`.
        result: Type of the result (one tensor, or a tuple).
    """

    function: str
    var: Any
    kernel: str
    func: PrimFunc
    args: tuple[Any, ...]
    result: Any

    @property
    def constants(self) -> frozenset[int]:
        """Positions of the arguments that are constants."""
        return frozenset(i for i, arg in enumerate(self.args) if isinstance(arg, Constant))


@dataclass(frozen=True)
class NewCall:
    """What a call becomes.

    Attributes:
        func: Its kernel; structurally equal kernels are shared.
        constants: Arguments to replace, by position.
        result: Type of the result.
    """

    func: PrimFunc
    result: Any
    constants: Mapping[int, Any] = field(default_factory=dict)


def relax_functions(module: IRModule) -> Iterator[tuple[str, Any]]:
    """Yield (name, function) of every Relax function."""
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            yield variable.name_hint, function


def kernel_calls(module: IRModule) -> list[KernelCall]:
    """All kernel calls of the module: function by function, each in the order it runs."""
    return [
        _kernel_call(module, name, binding)
        for name, function in sorted(relax_functions(module), key=lambda item: item[0])
        for block in function.body.blocks
        for binding in block.bindings
        if is_kernel_call(binding.value)
    ]


def is_kernel_call(value: Any) -> bool:
    """Whether a bound value is a `call_tir`."""
    return isinstance(value, relax.Call) and value.op == tvm.ir.Op.get("relax.call_tir")


def rewrite_kernel_calls(
    module: IRModule, rewrite: Callable[[KernelCall], NewCall], parameters: Mapping[Any, Any] = MappingProxyType({})
) -> IRModule:
    """Rebuild every kernel call as `rewrite` says; kernels no longer called disappear.

    Args:
        module: Every Relax function of it is rewritten.
        rewrite: What a call becomes.
        parameters: New types of function parameters.
    """
    rewriter = _Rewriter(module, rewrite, parameters)
    for name, function in sorted(relax_functions(module), key=lambda item: item[0]):
        rewriter.function = name
        rewriter.builder_.update_func(module.get_global_var(name), rewriter.visit_expr(function))
    rewritten = rewriter.builder_.get()
    return relax.transform.DeadCodeElimination([name for name, _ in relax_functions(module)])(rewritten)


def _kernel_call(module: IRModule, function: str, binding: Any) -> KernelCall:
    kernel, arguments = binding.value.args[0], binding.value.args[1]
    return KernelCall(
        function,
        binding.var,
        kernel.name_hint,
        module[kernel],
        tuple(arguments.fields),
        binding.value.ty_args[0],
    )


@mutator
class _Rewriter(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(
        self, module: IRModule, rewrite: Callable[[KernelCall], NewCall], parameters: Mapping[Any, Any]
    ) -> None:
        super().__init__(module)
        self.module, self.rewrite, self.parameters, self.function = module, rewrite, parameters, ""

    def visit_function_(self, function: Any) -> Any:
        params = [relax.Var(param.name, self.parameters.get(param, param.ty)) for param in function.params]
        for old, new in zip(function.params, params, strict=True):
            self.set_var_remap(old, new)
        body = self.visit_expr(function.body)
        return relax.Function(params, body, is_pure=function.is_pure, attrs=function.attrs)

    def visit_var_binding_(self, binding: Any) -> None:
        if not is_kernel_call(binding.value):
            super().visit_var_binding_(binding)
            return
        call = _kernel_call(self.module, self.function, binding)
        new = self.rewrite(call)
        kernel = self.builder_.add_func(new.func, call.kernel)
        arguments = [new.constants.get(i, self.visit_expr(arg)) for i, arg in enumerate(call.args)]
        several = isinstance(new.result, relax.TupleType)
        value = self.builder_.normalize(
            relax.call_tir(kernel, arguments, list(new.result.fields) if several else new.result)
        )
        var = type(binding.var)(binding.var.name, new.result)
        self.set_var_remap(binding.var, var)
        self.builder_.emit_normalized(relax.VarBinding(var, value))
