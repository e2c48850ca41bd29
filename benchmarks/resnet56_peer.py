"""Torch-Pruning's part of resnet56.py; runs where torch and torch-pruning are installed.

    python benchmarks/resnet56_peer.py settings.json     # one training, its row as JSON

GroupNormPruner with GroupMagnitudeImportance(p=2) and 400 small steps until the MACs are few
enough, then fine-tuning: as in Torch-Pruning's reproduce/main.py (--method group_norm) but for the
data and the learning rate, which resnet56.py gives. Shortcuts between stages are strided 1x1
convolutions there; here such a convolution has fixed weights that pick and pad channels as the
given model does, and counts neither as parameters nor as MACs.
"""

import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch_pruning
from torch import nn

STEPS = 400  # of an iterative removal, as in reproduce/main.py
SHOWN = 200  # steps of training between two lines on stderr


class Shortcut(nn.Conv2d):
    """Every second place, channels in the middle of more zeros (He et al. 2016, option A)."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__(inner, outer, 1, 2, bias=False)
        matrix = torch.zeros(outer, inner)
        start = (outer - inner) // 2
        matrix[start : start + inner] = torch.eye(inner)
        self.weight = nn.Parameter(matrix[:, :, None, None], requires_grad=False)


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.short = nn.Identity() if stride == 1 else Shortcut(inner, outer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inner, H, W) to (N, outer, H / stride, W / stride)."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.short(x)).relu()


class ResNet(nn.Module):
    """A ResNet for CIFAR, its parts called as in the ONNX file."""

    def __init__(self, blocks: list[int]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        inner = 16
        for number, count in enumerate(blocks):
            outer = 16 << number
            first = Block(inner, outer, 1 if outer == inner else 2)
            rest = [Block(outer, outer, 1) for _ in range(count - 1)]
            setattr(self, f"layer{number + 1}", nn.Sequential(first, *rest))
            inner = outer
        self.stages, self.linear = len(blocks), nn.Linear(inner, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 32, 32) to (N, 10)."""
        x = self.bn1(self.conv1(x)).relu()
        for number in range(self.stages):
            x = getattr(self, f"layer{number + 1}")(x)
        return self.linear(x.mean((2, 3)))


def given(arrays: dict[str, np.ndarray]) -> ResNet:
    """The network whose initializers `arrays` holds."""
    found = [re.match(r"layer(\d+)\.(\d+)\.conv1\.weight", name) for name in arrays]
    places = [(int(match[1]), int(match[2])) for match in found if match]
    stages = max(stage for stage, _ in places)
    model = ResNet([sum(stage == s + 1 for stage, _ in places) for s in range(stages)])
    state = model.state_dict()
    own = {name for name in state if name.endswith(("num_batches_tracked", "short.weight"))}
    assert set(state) - own <= set(arrays), set(state) - own - set(arrays)
    weights = {name: torch.from_numpy(arrays[name]) for name in set(state) - own}
    model.load_state_dict(weights, strict=False)
    return model.eval()


class Images:
    """uint8 images (N, 32, 32, 3) on disk or in memory as normalized batches (n, 3, 32, 32)."""

    def __init__(self, settings: dict, device: torch.device) -> None:
        self.device = device
        self.mean, self.std = (
            torch.tensor(settings[name], device=device).view(1, 3, 1, 1) for name in ("mean", "std")
        )

    def __call__(self, chosen: np.ndarray) -> torch.Tensor:
        """A batch of its own memory."""
        x = torch.from_numpy(np.ascontiguousarray(chosen)).to(self.device)
        return (x.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std


@torch.no_grad()
def correct(model: nn.Module, images: Images, x: np.ndarray, y: np.ndarray) -> int:
    """How many of the images are told right."""
    model.eval()
    hits = 0
    for start in range(0, len(x), 250):
        answers = model(images(x[start : start + 250])).argmax(1).cpu().numpy()
        hits += int((answers == y[start : start + 250]).sum())
    return hits


@torch.no_grad()
def macs(model: nn.Module, example: torch.Tensor) -> int:
    """Multiply-accumulates of convolutions and matrices for one image."""
    total = [0]

    def count(layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        total[0] += output[0].numel() * layer.weight[0].numel()

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [m.register_forward_hook(count) for m in layers if not isinstance(m, Shortcut)]
    model(example)
    for hook in hooks:
        hook.remove()
    return total[0]


def parameters(model: nn.Module) -> int:
    """Trained numbers and the statistics of normalizations, as in an ONNX file."""
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return learned + sum(2 * m.num_features for m in norms)


def pruned(model: nn.Module, example: torch.Tensor, settings: dict) -> None:
    """Remove channels until the MACs are `settings["times"]` times fewer."""
    pruner = torch_pruning.pruner.GroupNormPruner(
        model,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=settings["global"],
        iterative_steps=STEPS,
        pruning_ratio=1.0,
        ignored_layers=[model.linear],
    )
    before = macs(model, example)
    while before / macs(model, example) < settings["times"]:
        assert pruner.current_step < STEPS
        pruner.step()
    for layer in model.modules():
        if isinstance(layer, Shortcut):
            layer.weight.requires_grad_(False)


def order(count: int, settings: dict) -> Iterator[np.ndarray]:
    """Indices of every batch of one epoch over all augmented images."""
    shuffled = np.random.default_rng(settings["seed"]).permutation(count)
    size = settings["batch_size"]
    return (np.sort(shuffled[start : start + size]) for start in range(0, count, size))


def trained(model: nn.Module, images: Images, x: np.ndarray, y: np.ndarray, settings: dict) -> int:
    """Fine-tune with momentum and a learning rate that falls along half a cosine; the steps."""
    steps = math.ceil(len(x) / settings["batch_size"])
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=settings["learning_rate"],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
    )
    model.train()
    for step, chosen in enumerate(order(len(x), settings)):
        rate = settings["learning_rate"] * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.param_groups[0]["lr"] = rate
        labels = torch.from_numpy(y[chosen]).to(images.device)
        loss = nn.functional.cross_entropy(model(images(x[chosen])), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % SHOWN == 0:
            print(f"step {step} of {steps}, loss {loss.item():.4f}", file=sys.stderr, flush=True)
    return steps


def main() -> None:
    """One training, as the settings say."""
    began = time.perf_counter()
    with open(sys.argv[1], encoding="utf-8") as stream:
        settings = json.load(stream)
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(settings["seed"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with np.load(settings["arrays"]) as stored:
        arrays = {name: stored[name] for name in stored.files}
    x, y = (np.load(settings[name], mmap_mode="r") for name in ("x_train", "y_train"))
    model, images = given(arrays).to(device), Images(settings, device)
    example = torch.zeros(1, 3, 32, 32, device=device)
    test, checked = (arrays["x_test"], arrays["y_test"]), settings["checked"]
    hits = correct(model, images, test[0][:checked], test[1][:checked])
    assert abs(hits - settings["correct"]) <= 1, (hits, settings["correct"])
    row = {"given_macs": macs(model, example), "given_parameters": parameters(model)}
    if settings["times"] > 1:
        pruned(model, example, settings)
    left = {
        "pruned_metric": correct(model, images, *test) / len(test[0]),
        "macs": macs(model, example),
        "parameters": parameters(model),
        "widths": " ".join(
            str(m.out_channels)
            for m in model.modules()
            if isinstance(m, nn.Conv2d) and not isinstance(m, Shortcut)
        ),
    }
    started = time.perf_counter()
    steps = trained(model, images, x, y, settings)
    spent = time.perf_counter() - started
    validation = correct(model, images, arrays["x_val"], arrays["y_val"]) / len(arrays["x_val"])
    row |= {
        "metric": correct(model, images, *test) / len(test[0]),
        "best_validation": validation,
        **left,
        "steps": steps,
        "training_seconds": spent,
        "seconds": time.perf_counter() - began,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "runtime": f"torch {torch.__version__}, torch-pruning {torch_pruning.__version__}",
        "cpus": os.cpu_count(),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
