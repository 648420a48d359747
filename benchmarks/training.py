"""A training step on the ONNX graph beside the same network written by hand in torch.

    python benchmarks/training.py [--batch N] [--rounds N] [--return-memory]

Three ways to compute ResNet-20 (shared/data beside the repository) forward and backward: a plain torch module of the
same layers, `TorchExecutor` on the canonical graph, and the executor with every layer an operator of ours, as recovery
trains it. All in channels-last order, in turns in one process; milliseconds for one batch, best (median).
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gos_adapt.environment import read_environment
from gos_adapt.finetune.adapted import AdaptedModel
from gos_adapt.finetune.freed_memory import keep_freed_memory
from gos_adapt.finetune.precision import mixed_precision
from gos_adapt.model.load import load_model
from gos_adapt.model.sites import find_sites
from gos_adapt.model.torch_executor import TorchExecutor
from gos_adapt.operators.torch_form import TorchOperator

if TYPE_CHECKING:
    from collections.abc import Callable

    from gos_adapt.model.model import Model

MODEL = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10_resnet" / "resnet20_cifar10.onnx"


class Block(nn.Module):
    """A residual block whose shortcut drops every second place and fills channels up with zeros."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, filters, 3, stride, 1)
        self.second = nn.Conv2d(filters, filters, 3, 1, 1)
        self.stride, self.more = stride, (filters - channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, channels, h, w)`` to ``(n, filters, h / stride, w / stride)``."""
        shortcut = x if self.stride == 1 else F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more, self.more))
        return F.relu(self.second(F.relu(self.first(x))) + shortcut)


def plain_resnet20() -> nn.Module:
    """ResNet-20 for CIFAR-10, batch normalisation folded."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU()]
    channels = 16
    for filters in (16, 32, 64):
        for k in range(3):
            layers.append(Block(channels, filters, 2 if k == 0 and filters > 16 else 1))
            channels = filters
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def with_operators(model: Model) -> tuple[Callable[[Tensor], Tensor], list[nn.Parameter]]:
    """The model with every layer computed by an operator, and what it would train."""
    adapted = AdaptedModel(model, [site for site in find_sites(model) if site.kind != "branch"], whole=True)
    operators = [TorchOperator(site.operator, site.weights) for site in adapted.sites]
    parameters = [leaf for operator in operators for leaf in operator.parameters()]
    return lambda x: adapted({adapted.source: x}, operators), parameters


def main() -> None:
    """Print the table."""
    options = _options()
    if not options.return_memory:
        keep_freed_memory()
    model = load_model(MODEL)
    plain = plain_resnet20().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    executor = TorchExecutor(model.proto)
    ways: dict[str, tuple[Callable[[Tensor], Tensor], list[nn.Parameter]]] = {
        "plain torch module": (plain, list(plain.parameters())),
        "executor": (executor, list(executor.parameters())),
        "executor, every layer an operator": with_operators(model),
    }
    x = torch.randn(options.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(10, (options.batch,))
    machine = read_environment()
    threads = torch.get_num_threads()
    print(f"{machine.cpu}, {threads} threads, torch {torch.__version__}, {machine.date}, load {machine.load}")
    print(f"| one step of {options.batch} | float32 ms | mixed precision ms |\n|---|---|---|")
    columns = []
    for precision in (nullcontext, mixed_precision):
        samples: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, (way, parameters) in ways.items():
                samples[name].append(_step_s(way, parameters, x, targets, precision))
        columns.append({name: f"{1e3 * min(taken):.1f} ({1e3 * median(taken):.1f})" for name, taken in samples.items()})
    for name in ways:
        print(f"| {name} | {' | '.join(column[name] for column in columns)} |")


def _step_s(
    way: Callable[[Tensor], Tensor],
    parameters: list[nn.Parameter],
    x: Tensor,
    targets: Tensor,
    precision: Callable[[], nullcontext[None] | torch.autocast],
) -> float:
    start = time.perf_counter()
    with precision():
        outputs = way(x)
    loss = F.cross_entropy(outputs.float(), targets)
    for parameter in parameters:
        parameter.grad = None
    torch.autograd.backward(loss)
    return time.perf_counter() - start


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128, help="samples in a step (default: %(default)s)")
    parser.add_argument(
        "--return-memory", action="store_true", help="let the allocator return what is freed, which recovery does not"
    )
    parser.add_argument("--rounds", type=int, default=15, help="steps of each way (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
