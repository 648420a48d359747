"""Two networks of ImageNet size with random weights, written from their papers: only their shapes matter here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Residual(nn.Module):
    """He et al. 2016 (arXiv:1512.03385), fig. 5 left: two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(inputs, outputs, 3, stride), nn.ReLU(), _convolution(outputs, outputs, 3, 1)
        )
        self.shortcut = nn.Identity() if inputs == outputs else _convolution(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18() -> nn.Module:
    """ResNet-18 for 224x224 images (arXiv:1512.03385, table 1)."""
    torch.manual_seed(0)
    stages: list[nn.Module] = []
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        stages += [_Residual(inputs, outputs, stride), _Residual(outputs, outputs, 1)]
        inputs = outputs
    stem = [_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)).eval()


class _SqueezeExcite(nn.Module):
    """Hu et al. 2018 (arXiv:1709.01507), with the hard sigmoid of MobileNetV3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = channels // 4
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x)


class _Inverted(nn.Module):
    """Howard et al. 2019 (arXiv:1905.02244), fig. 4: expand, depthwise, squeeze-excite, project."""

    def __init__(self, size: int, inputs: int, wide: int, outputs: int, excite: bool, hard: bool, stride: int) -> None:
        super().__init__()
        activation = nn.Hardswish if hard else nn.ReLU
        expand = [_convolution(inputs, wide, 1, 1), activation()] if wide != inputs else []
        squeeze = [_SqueezeExcite(wide)] if excite else []
        self.body = nn.Sequential(
            *expand,
            _convolution(wide, wide, size, stride, groups=wide),
            activation(),
            *squeeze,
            _convolution(wide, outputs, 1, 1),
        )
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        return x + y if self.skips else y


MOBILENETV3_LARGE: Sequence[tuple[int, int, int, bool, bool, int]] = (
    # kernel, expanded, out, squeeze-excite, hard-swish, stride: arXiv:1905.02244, table 1
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)


def mobilenetv3_large() -> nn.Module:
    """MobileNetV3-Large for 224x224 images (arXiv:1905.02244, table 1)."""
    torch.manual_seed(0)
    blocks: list[nn.Module] = []
    inputs = 16
    for size, wide, outputs, excite, hard, stride in MOBILENETV3_LARGE:
        blocks.append(_Inverted(size, inputs, wide, outputs, excite, hard, stride))
        inputs = outputs
    head = [_convolution(160, 960, 1, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(960, 1280, 1)]
    tail = [nn.Hardswish(), nn.Conv2d(1280, 1000, 1), nn.Flatten()]
    return nn.Sequential(_convolution(3, 16, 3, 2), nn.Hardswish(), *blocks, *head, *tail).eval()


def _convolution(inputs: int, outputs: int, size: int, stride: int, groups: int = 1) -> nn.Module:
    """Convolution and batch normalisation, with statistics that keep activations near unit variance."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_in", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))
