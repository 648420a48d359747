"""The process that builds trial kernels: one job a line on standard input, its outcome a line on standard output.

Run as ``python -m tvm_passes.build_worker``. A code generator that aborts on a strange kernel takes only this process
with it; `build_pool` starts another.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_targets.child_process import die_with_parent, without_torch
from gos_adapt.errors import Rejection, last_line

if TYPE_CHECKING:
    from tvm_passes.compat import PrimFunc, Target
    from tvm_passes.schedules import Cpu, Scheduled


def main() -> None:
    """Build until standard input ends."""
    parent = os.getppid()
    die_with_parent()
    without_torch()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not pass for an answer
    if os.getppid() != parent:
        return
    for line in sys.stdin:
        print(json.dumps(_build(json.loads(line))), file=answers, flush=True)


def _build(job: dict[str, Any]) -> dict[str, Any]:
    """Schedule and compile the trials of one job into one library; a trial that fails costs only itself."""
    from gos_adapt.errors import ConfigError
    from tvm_passes.compat import Target, load_json
    from tvm_passes.link import link
    from tvm_passes.pipeline import parameters_of
    from tvm_passes.schedules import Cpu

    cpu, target = Cpu(**job["cpu"]), Target(job["target"])
    kernels = {key: load_json(text) for key, text in job["kernels"].items()}
    functions, refused = {}, {}
    for name, trial in job["trials"].items():
        result = _schedule(kernels[trial["kernel"]], cpu, trial)
        if isinstance(result, Rejection):
            refused[name] = result.reason
        else:
            functions[name] = result.func.with_attr("global_symbol", name)
    executable = _compile(functions, target)
    if isinstance(executable, Rejection):  # of one of them: those that compile alone compile together
        for name in list(functions):
            alone = _compile({name: functions[name]}, target)
            if isinstance(alone, Rejection):
                refused[name] = alone.reason
                del functions[name]
        executable = _compile(functions, target)
    if not functions:
        return {"parameters": {}, "refused": refused}
    try:
        link(executable, target, Path(job["path"]))
    except (ConfigError, OSError) as failure:
        return {"unlinked": last_line(failure)}
    parameters = {name: parameters_of(function) for name, function in functions.items()}
    return {"parameters": parameters, "refused": refused}


def _schedule(func: PrimFunc, cpu: Cpu, trial: dict[str, Any]) -> Scheduled | Rejection:
    from tvm_passes.schedules import RULES, Scheduled, Variant, schedule_kernel

    if trial["variant"] is None:
        return Scheduled(func)
    try:
        variant = Variant.parse(trial["variant"], RULES)
        return schedule_kernel(func, cpu, frozenset(trial["constants"]), variant)
    except Exception as failure:  # a rule met what it does not know
        return Rejection(last_line(failure))


def _compile(functions: dict[str, PrimFunc], target: Target) -> Any:
    from tvm_passes.compat import IRModule, tvm

    try:
        return tvm.compile(IRModule(functions), target) if functions else Rejection("nothing to compile")
    except Exception as failure:
        return Rejection(last_line(failure))


if __name__ == "__main__":
    main()
