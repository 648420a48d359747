"""A network so small that a whole run takes seconds, and a task for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
from compiling import graph, random
from onnx import helper

if TYPE_CHECKING:
    from pathlib import Path


def tiny_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("GlobalAveragePool", ["r1"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["y"], transB=1),
    ]
    smooth = np.outer(random(16), random(8 * 9)).reshape(16, 8, 3, 3)  # rank one: cheap operators can imitate it
    weights = {
        "w0": random(8, 1, 3, 3, seed=1), "b0": random(8, seed=2),
        "w1": smooth / 8, "b1": random(16, seed=4),
        "w2": random(4, 16, seed=5), "b2": random(4, seed=6),
    }  # fmt: skip
    return graph(nodes, ("N", 1, 12, 12), weights, {"y": 2})


def write_tiny(folder: Path) -> Path:
    """Write ``tiny.onnx``, and ``task.toml`` with its data, whose labels are what the model says."""
    onnx.save(tiny_model(), folder / "tiny.onnx")
    session = onnxruntime.InferenceSession(str(folder / "tiny.onnx"), providers=["CPUExecutionProvider"])
    for i, (split, count) in enumerate({"training": 256, "selection": 128, "test": 128}.items()):
        images = random(count, 1, 12, 12, seed=10 + i)
        np.savez(folder / f"{split}.npz", images=images, labels=session.run(None, {"x": images})[0].argmax(axis=1))
    splits = "".join(f'[splits.{split}]\nfiles = ["{split}.npz"]\n' for split in ("training", "selection", "test"))
    (folder / "task.toml").write_text(
        '[input]\narray = "images"\n[target]\narray = "labels"\n'
        + splits
        + '[metric]\nname = "top-1"\n[training]\nloss = "cross-entropy"\nbatch = 64\n'
    )
    return folder
