"""What the model is for: data in four splits, preprocessing, metric and loss."""

from gos_adapt.task.evaluate import Score, evaluate, evaluate_onnx, open_session
from gos_adapt.task.load import load_task
from gos_adapt.task.losses import LOSSES, Loss
from gos_adapt.task.metrics import METRICS, Metric, is_acceptable
from gos_adapt.task.split import Preprocessing, Split
from gos_adapt.task.task import Task, set_aside_calibration

__all__ = [
    "LOSSES",
    "METRICS",
    "Loss",
    "Metric",
    "Preprocessing",
    "Score",
    "Split",
    "Task",
    "evaluate",
    "evaluate_onnx",
    "is_acceptable",
    "load_task",
    "open_session",
    "set_aside_calibration",
]
