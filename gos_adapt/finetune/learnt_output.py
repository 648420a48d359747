"""Which tensor losses are about."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gos_adapt.model.model import Model
    from gos_adapt.task import Task


def learnt_output(model: Model, task: Task) -> str:
    """Name the first output; of a classifier that ends in a softmax over the classes, what that reads.

    Cross-entropy and distillation at a temperature are about logits: probabilities taken for logits differ by one at
    most, so that nothing could be learnt well. Classes rank by both alike.
    """
    output = model.outputs[0]
    last = next((node for node in model.proto.graph.node if output.name in node.output), None)
    if last is None or last.op_type != "Softmax" or task.loss.targets != "classes":
        return output.name
    axis = next((attribute.i for attribute in last.attribute if attribute.name == "axis"), -1)
    return last.input[0] if axis % len(output.shape) == 1 else output.name
