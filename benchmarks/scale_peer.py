"""Torch-Pruning's part of scale.py; runs where torch and torch-pruning are installed.

    python benchmarks/scale_peer.py resnet50    # a round per line on stdin, seconds as JSON

A round builds the dependency graph of a model (analysis), and removes half of the channels of every
group by magnitude (slicing, scores included in neither: they are timed apart, as ours are).
"""

import copy
import json
import math
import sys
import time

import torch
import torch_pruning
from torch import nn


class Layer(nn.Module):
    """One layer of BERT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.h, self.f = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.n, self.e = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, S, width) to the same."""
        parts = []
        for make in (self.q, self.k, self.v):
            y = make(x)
            parts.append(y.view(*y.shape[:2], self.heads, -1).transpose(1, 2))
        q, k, v = parts
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        x = self.n(x + self.o((weights @ v).transpose(1, 2).flatten(2)))
        return self.e(x + self.f(nn.functional.gelu(self.h(x))))


class Bert(nn.Module):
    """BERT-base with a classifier."""

    def __init__(self, layers: int = 12, width: int = 768, heads: int = 12) -> None:
        super().__init__()
        self.word, self.kind = nn.Embedding(30_522, width), nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.pool, self.top = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        """(N, S) twice to (N, 2)."""
        x = self.norm(self.word(ids) + self.kind(types))
        for layer in self.layers:
            x = layer(x)
        return self.top(torch.tanh(self.pool(x[:, 0])))


class Block(nn.Module):
    """A bottleneck of ResNet-50."""

    def __init__(self, inner: int, width: int, outer: int, stride: int) -> None:
        super().__init__()
        sizes = ((inner, width, 1, 1), (width, width, 3, stride), (width, outer, 1, 1))
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, k, s, k // 2, bias=False) for a, b, k, s in sizes
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b, _, _ in sizes)
        self.short = None
        if stride > 1 or inner != outer:
            short = nn.Conv2d(inner, outer, 1, stride, bias=False)
            self.short = nn.Sequential(short, nn.BatchNorm2d(outer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inner, H, W) to (N, outer, H / stride, W / stride)."""
        y = x
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y)) if number == 2 else norm(conv(y)).relu()
        return (y + (x if self.short is None else self.short(x))).relu()


class ResNet(nn.Module):
    """ResNet-50."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        blocks, inner = [], 64
        for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for number in range(count):
                blocks.append(Block(inner, width, 4 * width, 1 if number else stride))
                inner = 4 * width
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(inner, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 224, 224) to (N, 1000)."""
        x = nn.functional.max_pool2d(self.norm(self.stem(x)).relu(), 3, 2, 1)
        return self.fc(self.blocks(x).mean((2, 3)))


def made(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...], nn.Module, dict]:
    """A model, inputs, the layer that must stay, and how many heads each query layer has."""
    torch.manual_seed(0)
    if name == "resnet50":
        model = ResNet().eval()
        return model, (torch.zeros(1, 3, 224, 224),), model.fc, {}
    model = Bert().eval()
    heads = {m: layer.heads for layer in model.layers for m in (layer.q, layer.k, layer.v)}
    tokens = torch.zeros(1, 32, dtype=torch.long)
    return model, (tokens, tokens), model.top, heads


def round_(model: nn.Module, inputs: tuple, last: nn.Module, heads: dict) -> dict[str, float]:
    """Seconds by part, on the model given, which is changed."""
    scoring = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    spent = [0.0]

    def scores(*arguments: object, **options: object) -> torch.Tensor:
        start = time.perf_counter()
        found = scoring(*arguments, **options)
        spent[0] += time.perf_counter() - start
        return found

    start = time.perf_counter()
    pruner = torch_pruning.pruner.BasePruner(
        model,
        inputs,
        importance=scores,
        pruning_ratio=0.5,
        ignored_layers=[last],
        num_heads=heads,
        prune_head_dims=not heads,
        prune_num_heads=bool(heads),
        head_pruning_ratio=0.5,
    )
    built = time.perf_counter() - start
    start, spent[0] = time.perf_counter(), 0.0
    pruner.step()
    taken = time.perf_counter() - start - spent[0]
    return {"analysis": built, "scores": spent[0], "slicing": taken}


def main() -> None:
    """Answer every line with a round on a fresh copy."""
    model, inputs, last, heads = made(sys.argv[1])
    places = {module: name for name, module in model.named_modules()}
    for _ in sys.stdin:
        fresh = copy.deepcopy(model)
        modules = dict(fresh.named_modules())
        here = {modules[places[module]]: count for module, count in heads.items()}
        found = round_(fresh, inputs, modules[places[last]], here)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
