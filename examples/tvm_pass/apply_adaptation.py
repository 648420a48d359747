"""Use an adaptation in a compile flow of your own: only the lines marked with an arrow are new in it.

python examples/tvm_pass/apply_adaptation.py ORIGINAL.onnx RUN_FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from device_targets import host
from tvm_passes import LowerForDevice, ReplaceOperators, load_adaptation  # <-
from tvm_passes.build import target_of

TOLERANCE = 1e-4


def compile_adapted(original: onnx.ModelProto, run_folder: Path) -> relax.VirtualMachine:
    """Compile the original model at batch 1, with the run's operators in place of the replaced ones."""
    fixed = {
        value.name: [axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim]
        for value in original.graph.input
        if value.name not in {tensor.name for tensor in original.graph.initializer}
    }
    module = from_onnx(original, shape_dict=fixed)
    passes = tvm.transform.Sequential(
        [
            ReplaceOperators(load_adaptation(run_folder)),  # <-
            LowerForDevice(host()),  # <- in place of relax.get_pipeline("zero"), which schedules nothing for a CPU
        ]
    )
    return relax.VirtualMachine(tvm.compile(passes(module), target_of(host())), tvm.cpu())


def main() -> None:
    """Compile, run on a random input, and compare with the run's own `adapted.onnx`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("original", type=Path, help="the model that was adapted, as it was")
    parser.add_argument("run_folder", type=Path, help="what adapt wrote: adapted.onnx, adaptation.json, ...")
    arguments = parser.parse_args()

    machine = compile_adapted(onnx.load(arguments.original), arguments.run_folder)
    session = onnxruntime.InferenceSession(arguments.run_folder / "adapted.onnx", providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    inputs = {
        value.name: rng.standard_normal([axis if isinstance(axis, int) else 1 for axis in value.shape], np.float32)
        for value in session.get_inputs()
    }
    expected = session.run(None, inputs)
    result = machine["main"](*map(tvm.runtime.tensor, inputs.values()))
    actual = [result] if len(expected) == 1 else list(result)
    difference = max(
        float(np.abs(ours.numpy() - theirs).max() / np.abs(theirs).max())
        for ours, theirs in zip(actual, expected, strict=True)
    )
    print(f"largest difference from adapted.onnx in ONNX Runtime: {difference:.1e} of the output's scale")
    if difference > TOLERANCE:
        raise SystemExit(f"that is more than {TOLERANCE}: the module is not the adapted model")


if __name__ == "__main__":
    main()
