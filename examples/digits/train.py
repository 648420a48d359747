"""Train a small residual network on scikit-learn's handwritten digits, and write everything `adapt` needs.

    python examples/digits/train.py
    adapt examples/digits/build/digits.onnx --target host --task examples/digits/digits.toml

The network is what a user would bring: residual blocks with batch normalisation, taken over from a larger problem,
wider and deeper than ten digits need. Nothing is downloaded.
"""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import zoom
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

BUILD = Path(__file__).parent / "build"
EPOCHS = 4
BATCH = 64


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut, as in ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = normalised(inputs, outputs, 3, stride)
        self.second = normalised(outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else normalised(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, inputs, h, w)`` to ``(n, outputs, h / stride, w / stride)``."""
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def normalised(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    """Build a convolution followed by batch normalisation."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def network() -> nn.Module:
    """Build the network: ``(n, 1, 16, 16)`` in 0 to 1, to ten logits."""
    return nn.Sequential(
        normalised(1, 32, 3),
        nn.ReLU(),
        Block(32, 32, stride=1),
        Block(32, 64, stride=2),
        Block(64, 64, stride=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def load_splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split the digits into three parts of equal class shares: images ``(n, 1, 16, 16)`` of 0 to 255, and labels.

    The training part holds each image three times: as it is, and moved by up to two pixels each way.
    """
    images, labels = load_digits(return_X_y=True)
    images = zoom(images.reshape(-1, 1, 8, 8), (1, 1, 2, 2), order=1)
    images = np.round(images * (255 / 16)).astype(np.uint8)
    rest, test, rest_labels, test_labels = train_test_split(
        images, labels, test_size=400, stratify=labels, random_state=0
    )
    training, selection, training_labels, selection_labels = train_test_split(
        rest, rest_labels, test_size=400, stratify=rest_labels, random_state=0
    )
    rng = np.random.default_rng(0)
    copies = [training, *(moved(training, rng) for _ in range(2))]
    return {
        "training": (np.concatenate(copies), np.tile(training_labels, len(copies))),
        "selection": (selection, selection_labels),
        "test": (test, test_labels),
    }


def moved(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move each image by -2 to 2 pixels in each direction, but not by nothing; what comes in is black."""
    steps = [(y, x) for y in range(-2, 3) for x in range(-2, 3) if (y, x) != (0, 0)]
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    chosen = rng.choice(steps, len(images))
    return np.stack([image[:, 2 + y : 18 + y, 2 + x : 18 + x] for image, (y, x) in zip(padded, chosen, strict=True)])


def train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Train by SGD with one cosine cycle; leaves the model in evaluation mode."""
    model.to(memory_format=torch.channels_last)  # the faster layout on a CPU
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    model.train()
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        print(f"epoch {epoch + 1}/{EPOCHS}  loss {loss.item():.3f}")
    model.to(memory_format=torch.contiguous_format).eval()  # exported in the other layout, pooling becomes a gather


def export(model: nn.Module, path: Path) -> None:
    """Write the model as ONNX with a dynamic batch axis."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not there
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # torch's own, of its own code
    torch.onnx.export(
        model,
        (torch.zeros(2, 1, 16, 16),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"input": {0: torch.export.Dim("batch")}},
        external_data=False,
        verbose=False,
    )


def main() -> None:
    """Train, export and save the splits."""
    start = time.monotonic()
    torch.manual_seed(0)
    BUILD.mkdir(exist_ok=True)
    splits = load_splits()
    for name, (images, labels) in splits.items():
        np.savez_compressed(BUILD / f"digits_{name}.npz", images=images, labels=labels)
    tensors = {name: (torch.tensor(x) / 255, torch.tensor(y)) for name, (x, y) in splits.items()}
    model = network()
    train(model, *tensors["training"])
    images, labels = tensors["test"]
    with torch.inference_mode():
        correct = int((model(images).argmax(1) == labels).sum())
    export(model, BUILD / "digits.onnx")
    print(f"{correct}/{len(labels)} test digits right; {BUILD}/digits.onnx written ({time.monotonic() - start:.0f} s)")


if __name__ == "__main__":
    main()
