"""The networks of `step_time.py` in PyTorch: exported from here, and trained here beside onnxprune.

    python benchmarks/step_twins.py export MODEL BATCH FOLDER   # model.onnx, data.npz, weights.pt
    python benchmarks/step_twins.py work FOLDER MODEL VARIANT   # a worker, see step_workers.py

Needs PyTorch and onnx, but not onnxprune; VARIANT is contiguous, channels_last or compiled.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import step_workers
import torch
from torch import nn
from torch.nn import functional

CLASSES = 10
VOCABULARY, LENGTH = 8192, 64


def mlp() -> nn.Module:
    """784-500-500-10."""
    sizes = [784, 500, 500]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], CLASSES))


def lenet5() -> nn.Module:
    """Two 5x5 convolutions with pooling, three dense layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, CLASSES),
    )


class Residual(nn.Module):
    """The sum of a shortcut and a branch, then a ReLU where there is one."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, *, relu: bool) -> None:
        super().__init__()
        self.branch, self.shortcut, self.relu = branch, shortcut, relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same, or to what the branch makes of it."""
        y = self.branch(x) + self.shortcut(x)
        return functional.relu(y) if self.relu else y


def _conv(before: int, after: int, kernel: int, stride: int = 1, group: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=group, bias=False)
    return [conv, nn.BatchNorm2d(after)]


def resnet20() -> nn.Module:
    """He et al. 2016 for 32x32 images, with projection shortcuts."""
    layers: list[nn.Module] = [*_conv(3, 16, 3), nn.ReLU()]
    before = 16
    for width, first in ((16, 1), (32, 2), (64, 2)):
        for stride in (first, 1, 1):
            branch = nn.Sequential(
                *_conv(before, width, 3, stride), nn.ReLU(), *_conv(width, width, 3)
            )
            same = stride == 1 and before == width
            shortcut = nn.Identity() if same else nn.Sequential(*_conv(before, width, 1, stride))
            layers.append(Residual(branch, shortcut, relu=True))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def mobilenet_v2() -> nn.Module:
    """Sandler et al. 2018, width 1, with the first two strides 1 as is usual for 32x32 images."""
    layers: list[nn.Module] = [*_conv(3, 32, 3), nn.ReLU6()]
    before = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
    for factor, width, count, first in (*stages, (6, 160, 3, 2), (6, 320, 1, 1)):
        for stride in (first, *[1] * (count - 1)):
            inner = before * factor
            expand = [*_conv(before, inner, 1), nn.ReLU6()] if factor > 1 else []
            depthwise = [*_conv(inner, inner, 3, stride, inner), nn.ReLU6()]
            branch = nn.Sequential(*expand, *depthwise, *_conv(inner, width, 1))
            same = stride == 1 and before == width
            layers.append(Residual(branch, nn.Identity(), relu=False) if same else branch)
            before = width
    layers += [*_conv(before, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(1280, CLASSES))


class Attention(nn.Module):
    """Self-attention of 12 heads, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, L, width) to the same."""

        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.reshape(-1, LENGTH, 12, 32).transpose(1, 2)

        q, k, v = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        weights = torch.softmax(q @ k.transpose(2, 3) * 32**-0.5, dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(-1, LENGTH, 384))


class Layer(nn.Module):
    """A transformer layer, normalized after each sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = Attention(width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dense = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, L, width) to the same."""
        x = self.first(x + self.attention(x))
        return self.second(x + self.dense(x))


class Bert(nn.Module):
    """Six layers, 384 wide, 64 tokens, classified by the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 384)
        self.places = nn.Parameter(torch.randn(1, LENGTH, 384))
        self.norm = nn.LayerNorm(384)
        self.layers = nn.Sequential(*(Layer(384) for _ in range(6)))
        self.out = nn.Linear(384, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, L) token numbers to (N, classes)."""
        return self.out(self.layers(self.norm(self.words(x) + self.places))[:, 0])


class Tagger(nn.Module):
    """An embedding, one LSTM of 256 and a class for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 128)
        self.lstm = nn.LSTM(128, 256, batch_first=True)
        self.out = nn.Linear(256, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, L) token numbers to (N, L, classes)."""
        return self.out(self.lstm(self.words(x))[0])


MODELS = {
    "mlp": (mlp, (784,)),
    "lenet5": (lenet5, (1, 28, 28)),
    "resnet20": (resnet20, (3, 32, 32)),
    "mobilenet_v2": (mobilenet_v2, (3, 32, 32)),
    "bert": (Bert, None),
    "lstm": (Tagger, None),
}


def batch(name: str, size: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Random examples and classes."""
    rng = np.random.default_rng(0)
    sizes = MODELS[name][1]
    if sizes is not None:
        return rng.normal(size=(size, *sizes)).astype(np.float32), rng.integers(CLASSES, size=size)
    tokens = rng.integers(VOCABULARY, size=(size, LENGTH))
    return tokens, rng.integers(CLASSES, size=tokens.shape if name == "lstm" else size)


def export(name: str, size: int, folder: Path) -> None:
    """Write the network, its weights and one batch."""
    torch.manual_seed(0)
    network = MODELS[name][0]().train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # channels of zeros would lie on the ReLU's kink
            nn.init.uniform_(module.bias, -0.5, 0.5)
    torch.save(network.state_dict(), folder / "weights.pt")
    x, y = batch(name, size)
    np.savez(folder / "data.npz", x=x, y=y)
    torch.onnx.export(
        network,
        (torch.from_numpy(x[:2] if size > 1 else np.concatenate([x, x])),),
        folder / "model.onnx",
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
        opset_version=17,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.TRAINING,
        dynamo=False,
    )


def stepper(name: str, variant: str, folder: Path) -> step_workers.Step:
    """One training step on the batch in `folder`."""
    network = MODELS[name][0]().train()
    network.load_state_dict(torch.load(folder / "weights.pt"))
    with np.load(folder / "data.npz") as data:
        x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    if variant == "channels_last" and x.ndim != 4:
        sys.exit("no images, so no channels")
    if variant == "channels_last":
        network = network.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=step_workers.RATE, momentum=step_workers.MOMENTUM
    )

    def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(network(x).reshape(-1, CLASSES), y.reshape(-1))

    run = torch.compile(forward) if variant == "compiled" else forward

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = run(x, y)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    if sys.argv[1] == "export":
        export(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    else:
        step_workers.serve(stepper(sys.argv[3], sys.argv[4], Path(sys.argv[2])))
