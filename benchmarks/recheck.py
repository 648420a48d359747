"""Check a finished run again, with nothing of the product but its loader: is what result.json claims true?

    python benchmarks/recheck.py RUN --inputs images.npz [--scale 1/255 --layout NHWC --mean ... --std ...]

1. Accuracy of adapted.onnx in ONNX Runtime on the given samples, counted here with numpy alone, must equal result.json
   to the image.
2. model.so, loaded with `gos_adapt.load_compiled`, must agree with ONNX Runtime on adapted.onnx within 1e-4 of the
   outputs' scale on 256 of the samples.

Exits with 1 when either does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnxruntime

from gos_adapt import load_compiled

TOLERANCE = 1e-4
INPUTS = 256
BATCH = 100


def main() -> int:
    """Run both checks; return the exit code."""
    options = _options()
    inputs, labels = _samples(options)
    session = onnxruntime.InferenceSession(str(options.run / "adapted.onnx"), providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0].name

    claimed = json.loads((options.run / "result.json").read_text())["accuracy"]
    batches = [inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH)]
    outputs = np.concatenate([session.run(None, {entry: batch})[0] for batch in batches])
    right = int((outputs.argmax(axis=1) == labels).sum())
    claimed_right = round(claimed["adapted"]["value"] * claimed["n"])
    same = right == claimed_right and len(labels) == claimed["n"]
    print(f"adapted.onnx: {right} of {len(labels)} right; result.json says {claimed_right} of {claimed['n']}")

    compiled = load_compiled(options.run / "model.so")
    ours = np.concatenate([compiled(sample[None]) for sample in inputs[:INPUTS]])
    deviation = float(np.abs(ours - outputs[:INPUTS]).max() / np.abs(outputs[:INPUTS]).max())
    print(f"model.so: deviates by {deviation:.2e} of the outputs' scale on {len(ours)} inputs (allowed: {TOLERANCE:g})")
    return 0 if same and deviation <= TOLERANCE else 1


def _samples(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Preprocess as the model's authors say: x * scale, minus mean, over std; channels first."""
    with np.load(options.inputs, allow_pickle=False) as file:
        images, labels = file[options.array], file[options.labels].astype(np.int64)
    if options.layout == "NHWC":
        images = images.transpose(0, 3, 1, 2)
    channels = (1, -1, 1, 1)
    mean, std = (np.array(values, np.float32).reshape(channels) for values in (options.mean, options.std))
    return ((images.astype(np.float32) * np.float32(Fraction(options.scale))) - mean) / std, labels


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--inputs", type=Path, required=True, help=".npz with images and labels")
    parser.add_argument("--array", default="images")
    parser.add_argument("--labels", default="labels")
    parser.add_argument("--layout", choices=("NHWC", "NCHW"), default="NCHW")
    parser.add_argument("--scale", default="1", help="a number or a fraction, such as 1/255")
    parser.add_argument("--mean", type=float, nargs="+", default=[0.0])
    parser.add_argument("--std", type=float, nargs="+", default=[1.0])
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
