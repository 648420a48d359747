"""Put the operators of an adaptation into the Relax module of the original model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gos_adapt.errors import ModelImportError
from gos_adapt.model.wording import quote
from tvm_passes.compat import IRModule, PassContext, module_pass, mutator, register_error, relax
from tvm_passes.find_regions import Dataflow, Region, find_region, overlapping
from tvm_passes.kernel_calls import relax_functions
from tvm_passes.lower_instructions import emit

if TYPE_CHECKING:
    from gos_adapt.adaptation import Adaptation, Entry

register_error(ModelImportError)  # or it would leave TVM's pass machinery as a RuntimeError


@module_pass(opt_level=0, name="ReplaceOperators")
class ReplaceOperators:
    """Replace every site of an adaptation in function ``main`` by its new operator; the rest stays as it is.

    The module is what TVM's `from_onnx` makes of the *original* model, its weights bound: import with
    ``keep_params_in_input=False`` (the default), or apply `relax.transform.BindParams` first. Any batch, also symbolic.
    Passes may have run before it as long as they leave the filters and the values between sites as they are: folding
    constants or decomposing batch normalisations does, fusing a site with its neighbours does not.

    A site is known by its weights and by what it computes: for each, the few regions of the module that it may be are
    compiled for this machine and run (less than half a second a site).

    Raises:
        ModelImportError: when applied: a site is not in the module, or cannot be told from others. Nothing is skipped.
    """

    def __init__(self, adaptation: Adaptation) -> None:
        self.adaptation = adaptation

    def transform_module(self, module: IRModule, _context: PassContext) -> IRModule:
        """Apply the pass."""
        if "main" not in [name for name, _ in relax_functions(module)]:
            raise ModelImportError("the module has no Relax function main; give what from_onnx returned")
        module = _without_dead_code(module)  # a batch normalisation's unused results would count as readers
        splicer = _Splicer(module, self._places(module))
        splicer.builder_.update_func(module.get_global_var("main"), splicer.visit_expr(module["main"]))
        return _without_dead_code(splicer.builder_.get())

    def _places(self, module: IRModule) -> dict[Any, tuple[Region, Entry]]:
        """Region and site by the variable that the region computes."""
        dataflow = Dataflow(module["main"])
        places: dict[Any, tuple[Region, Entry]] = {}
        for site in self.adaptation.entries:
            region = find_region(module, dataflow, site)
            if overlapping(region, [other for other, _ in places.values()]):
                raise ModelImportError(f"site {quote(site.site)} overlaps another of the adaptation; adapt again")
            places[region.exit] = region, site
        return places


def _without_dead_code(module: IRModule) -> IRModule:
    return relax.transform.DeadCodeElimination([name for name, _ in relax_functions(module)])(module)


@mutator
class _Splicer(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: IRModule, places: dict[Any, tuple[Region, Entry]]) -> None:
        super().__init__(module)
        self.places = places

    def visit_var_binding_(self, binding: Any) -> None:
        if binding.var not in self.places:
            super().visit_var_binding_(binding)
            return
        region, site = self.places[binding.var]
        result = emit(self.builder_, site.operator, site.weights, [self.visit_expr(region.entry)])
        value = self.builder_.normalize(result)
        var = type(binding.var)(binding.var.name, value.ty)
        self.set_var_remap(binding.var, var)
        self.builder_.emit_normalized(relax.VarBinding(var, value))
