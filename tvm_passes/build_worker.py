"""The process that builds trial kernels: one job a line on standard input, its outcome a line on standard output.

Run as ``python -m tvm_passes.build_worker``. A code generator that aborts on a strange kernel takes only this process
with it; `build_pool` starts another.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from device_targets.local_server import die_with_parent


def main() -> None:
    """Build until standard input ends."""
    parent = os.getppid()
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not pass for an answer
    if os.getppid() != parent:
        return
    for line in sys.stdin:
        print(json.dumps(_build(json.loads(line))), file=answers, flush=True)


def _build(job: dict[str, Any]) -> dict[str, Any]:
    """Schedule and compile the trials of one job into one library; a trial that fails costs only itself."""
    from gos_adapt.errors import last_line
    from tvm_passes.compat import IRModule, Target, load_json, shape_of, tvm
    from tvm_passes.link import link
    from tvm_passes.schedules import RULES, Cpu, Scheduled, Variant, schedule_kernel

    cpu, target = Cpu(**job["cpu"]), Target(job["target"])
    kernels = {key: load_json(text) for key, text in job["kernels"].items()}
    functions, refused = {}, {}
    for name, trial in job["trials"].items():
        variant = Variant.parse(trial["variant"], RULES)
        result = schedule_kernel(kernels[trial["kernel"]], cpu, frozenset(trial["constants"]), variant)
        if isinstance(result, Scheduled):
            functions[name] = result.func.with_attr("global_symbol", name)
        else:
            refused[name] = result.reason
    try:
        executable = tvm.compile(IRModule(functions), target)
    except Exception:  # of one of them: those that compile alone compile together
        for name in list(functions):
            try:
                tvm.compile(IRModule({name: functions[name]}), target)
            except Exception as failure:
                refused[name] = last_line(failure)
                del functions[name]
        executable = tvm.compile(IRModule(functions), target)
    link(executable, target, Path(job["path"]))
    parameters = {
        name: [[list(shape_of(parameter)), str(parameter.ty.dtype)] for parameter in function.params]
        for name, function in functions.items()
    }
    return {"parameters": parameters, "refused": refused}


if __name__ == "__main__":
    main()
