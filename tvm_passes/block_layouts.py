"""Keep feature maps in blocked layout, (n, c/b, h, w, b), from one end of the graph to the other.

A layout is only a rewriting of a buffer's indices, so no operator needs to know of it and nothing is ever converted:
each kernel that reads or writes a blocked tensor has that parameter re-indexed, whatever the kernel does. The model's
own inputs and outputs keep their order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm_passes.compat import (
    IRModule,
    PassContext,
    Schedule,
    blocks_of,
    is_reduction,
    module_pass,
    reduces,
    relax,
    shape_of,
)
from tvm_passes.kernel_calls import (
    KernelCall,
    NewCall,
    is_kernel_call,
    kernel_calls,
    relax_functions,
    rewrite_kernel_calls,
)

if TYPE_CHECKING:
    from tvm_passes.schedules.cpu import Cpu


@module_pass(opt_level=0, name="BlockLayouts")
class BlockLayouts:
    """Store every feature map between two kernels in blocks of as many channels as a vector has lanes.

    Args:
        cpu: Whose lanes.
        boundary: Also block what functions take and return. That is how an operator is timed as it will run inside a
            model, where its neighbours speak blocks too.
    """

    def __init__(self, cpu: Cpu, *, boundary: bool = False) -> None:
        self.cpu, self.boundary = cpu, boundary

    def transform_module(self, module: IRModule, _context: PassContext) -> IRModule:
        """Apply the pass."""
        blocks = self._choose(module)

        def reindex(call: KernelCall) -> NewCall:
            blocked = {i: blocks[arg] for i, arg in enumerate(call.args) if arg in blocks}
            result = blocks.get(call.var)
            if result is None and not blocked:
                return NewCall(call.func, call.result)
            return NewCall(self._reindex(call, blocked, result), _blocked_type(call.result, result))

        parameters = {
            param: _blocked_type(param.ty, blocks[param])
            for _, function in relax_functions(module)
            for param in function.params
            if param in blocks
        }
        return rewrite_kernel_calls(module, reindex, parameters)

    def _choose(self, module: IRModule) -> dict[Any, int]:
        """Block size for each variable that is to be blocked: feature maps that only spatial kernels touch."""
        calls = kernel_calls(module)
        chosen = {call.var: self._block_of(call.result) for call in calls}
        kept = set()
        for _, function in relax_functions(module):
            if self.boundary:
                chosen |= {param: self._block_of(param.ty) for param in function.params}
                kept |= _used_outside_kernels(function) - {function.body.body}
            else:
                kept |= _used_outside_kernels(function)
        for call in calls:
            if not _spatial(call):
                kept.update([call.var, *call.args])
        return {var: block for var, block in chosen.items() if block > 1 and var not in kept}

    def _block_of(self, result: Any) -> int:
        if not isinstance(result, relax.TensorType) or str(result.dtype) != "float32" or result.ndim != 4:
            return 1
        _, channels, height, width = (int(size) for size in result.shape)
        return self.cpu.block(channels) if height * width > 1 else 1

    def _reindex(self, call: KernelCall, blocked: dict[int, int], result: int | None) -> Any:
        schedule = Schedule(call.func)
        sizes = blocked if result is None else blocked | {len(call.func.params) - 1: result}

        def size_of(buffer: Any) -> int:
            """Block size of a parameter, found by identity: several of one kernel may bear one name."""
            params = schedule.mod["main"].params
            return next((sizes.get(i, 1) for i, param in enumerate(params) if param.same_as(buffer)), 1)

        if result is not None:
            (*_, last) = blocks_of(schedule)
            if is_reduction(schedule.get(last)):  # a store of its own, while its axes are still those of the reduction
                schedule.cache_write(last, 0, "global")
        for block in blocks_of(schedule):
            written = schedule.get(block).writes[0].source
            if result is not None and size_of(written) == 1 and len(shape_of(written)) == 4:
                size = self.cpu.block(shape_of(written)[1])
                if size > 1:
                    schedule.transform_layout(block, ("write", 0), _index_map(size))
        for block in blocks_of(schedule):
            for kind, regions in (("read", schedule.get(block).reads), ("write", schedule.get(block).writes)):
                for i, region in enumerate(regions):
                    if (size := size_of(region.source)) > 1 and len(shape_of(region.source)) == 4:
                        schedule.transform_layout(block, (kind, i), _index_map(size))
        return schedule.mod["main"].with_attrs(dict(call.func.attrs or {}))


def _spatial(call: KernelCall) -> bool:
    """Whether a kernel keeps channels apart or sums over all of them: not so for products of feature maps, softmax."""
    schedule = Schedule(call.func)
    blocks = [schedule.get(block) for block in blocks_of(schedule)]
    if not all(block.writes for block in blocks) or not blocks:
        return False  # what does not say which elements it touches cannot be re-indexed
    reductions = [block for block in blocks if is_reduction(block)]
    if not reductions:
        return True
    return len(reductions) == 1 and sum(map(reduces, reductions[0].iter_vars)) > 1


def _used_outside_kernels(function: Any) -> set[Any]:
    """Variables that something other than a kernel call reads: results, tuples, views."""
    used: set[Any] = set()

    def visit(node: Any) -> None:
        if isinstance(node, relax.Var):
            used.add(node)

    for block in function.body.blocks:
        for binding in block.bindings:
            if not is_kernel_call(binding.value):
                relax.analysis.post_order_visit(binding.value, visit)
    relax.analysis.post_order_visit(function.body.body, visit)
    return used


def _blocked_type(result: Any, block: int | None) -> Any:
    if block is None:
        return result
    batch, channels, height, width = (int(size) for size in result.shape)
    return relax.TensorType((batch, channels // block, height, width, block), result.dtype)


def _index_map(block: int) -> Any:
    return lambda n, c, h, w: (n, c // block, h, w, c % block)
