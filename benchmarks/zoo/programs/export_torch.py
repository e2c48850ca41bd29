"""Export one architecture with random weights from PyTorch: torchvision, timm, transformers, own.

    python export_torch.py SOURCE:NAME OUT --size 64 --exporter torchscript

Runs in an environment of its own (benchmarks/requirements-zoo.txt); nothing of the package is
imported. Weights are as initialized, except that what starts at zero or one (residual scales,
norms, biases) is moved, so that no branch is switched off, and batch statistics are those of one
random batch: a removal then changes the output, and a comparison means something.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torchvision_names import declare

Example = tuple[torch.Tensor, ...]
Made = tuple[nn.Module, Example]


class Maps(nn.Module):
    """A detector up to its raw predictions, or a segmenter as a tuple of tensors.

    Detection heads are followed by sorting and suppression, which hold no weights.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Leaves of the result."""
        model = self.model
        if hasattr(model, "backbone") and hasattr(model, "head"):  # one stage: SSD, RetinaNet, FCOS
            maps = list(_leaves(model.backbone(x)))
            return [*_leaves(model.head(maps))]
        if hasattr(model, "rpn"):  # two stages, both heads on what the region network sees
            maps = list(_leaves(model.backbone(x)))
            regions = [*_leaves(model.rpn.head(maps))]
            pooled = nn.functional.interpolate(maps[0], size=7)
            return [*regions, *_regional(model.roi_heads, pooled)]
        return [*_leaves(model(x))]


def _regional(heads: nn.Module, pooled: torch.Tensor) -> list[torch.Tensor]:
    """What the second stage says of one region that covers the image."""
    found = [*_leaves(heads.box_predictor(heads.box_head(pooled)))]
    for part in ("mask", "keypoint"):
        if getattr(heads, f"{part}_head", None) is not None:
            local = nn.functional.interpolate(pooled, size=14)
            found += _leaves(
                getattr(heads, f"{part}_predictor")(getattr(heads, f"{part}_head")(local))
            )
    return found


def _leaves(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    return []


def torchvision(name: str, size: int) -> Made:
    """A model of torchvision's own registry."""
    from torchvision import models

    module = models.get_model_builder(name).__module__
    options = {"weights_backbone": None} if "detection" in module or "segment" in module else {}
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": True, "aux_logits": False}
    if name.startswith("vit"):
        options["image_size"] = size
    model = models.get_model(name, weights=None, **options)
    if "raft" in name:
        return model, (torch.randn(1, 3, size, size), torch.randn(1, 3, size, size))
    return Maps(model) if options.get("weights_backbone", 0) is None else model, _image(size)


def timm(name: str, size: int) -> Made:
    """A model of timm."""
    import timm as library

    try:
        model = library.create_model(name, pretrained=False, num_classes=100, img_size=size)
    except TypeError:  # those that take any size have no such option
        model = library.create_model(name, pretrained=False, num_classes=100)
    return model, _image(size)


def transformers(name: str, size: int) -> Made:
    """A model of transformers, by its type, small but with all of its parts."""
    import transformers as library

    kind, cls, options = _TRANSFORMERS[name]
    config = library.AutoConfig.for_model(kind, **options)
    config._attn_implementation = "eager"
    model = getattr(library, cls)(config)
    if name in ("vit", "swin", "convnext", "deit", "segformer", "mobilevit", "detr", "yolos"):
        return _Leaves(model, "pixel_values"), _image(size)
    if name in ("whisper", "wav2vec2"):
        shape = (1, 80, 100) if name == "whisper" else (1, 4000)
        return _Leaves(model, "input_features" if name == "whisper" else "input_values"), (
            torch.randn(shape),
        )
    return _Leaves(model, "input_ids"), (torch.randint(1, 90, (1, 16)),)


class _Leaves(nn.Module):
    """A model of transformers with one input, as a tuple of tensors."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The first output."""
        options = {"use_cache": False} if hasattr(self.model.config, "use_cache") else {}
        if self.model.config.is_encoder_decoder and self.name == "input_features":
            return self.model.get_encoder()(x)[0]
        if self.model.config.is_encoder_decoder and self.name == "input_ids":
            options["decoder_input_ids"] = x
        return _leaves(self.model(**{self.name: x}, **options))[0]


_TEXT = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}
_LLAMA = {**_TEXT, "num_key_value_heads": 2, "max_position_embeddings": 64}
_TRANSFORMERS: dict[str, tuple[str, str, dict[str, object]]] = {
    "bert": ("bert", "BertForSequenceClassification", _TEXT),
    "roberta": ("roberta", "RobertaForTokenClassification", _TEXT),
    "distilbert": (
        "distilbert",
        "DistilBertForSequenceClassification",
        {"vocab_size": 1000, "dim": 128, "n_layers": 2, "n_heads": 4, "hidden_dim": 256},
    ),
    "electra": ("electra", "ElectraForTokenClassification", {**_TEXT, "embedding_size": 64}),
    "albert": ("albert", "AlbertForSequenceClassification", {**_TEXT, "embedding_size": 64}),
    "deberta-v2": ("deberta-v2", "DebertaV2ForSequenceClassification", _TEXT),
    "gpt2": (
        "gpt2",
        "GPT2LMHeadModel",
        {"vocab_size": 1000, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    "gpt_neox": ("gpt_neox", "GPTNeoXForCausalLM", _TEXT),
    "llama": ("llama", "LlamaForCausalLM", _LLAMA),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", _LLAMA),
    "phi3": ("phi3", "Phi3ForCausalLM", {**_LLAMA, "pad_token_id": 0}),
    "t5": (
        "t5",
        "T5ForConditionalGeneration",
        {"vocab_size": 1000, "d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2}
        | {"num_heads": 4, "decoder_start_token_id": 0},
    ),
    "whisper": (
        "whisper",
        "WhisperModel",
        {"vocab_size": 1000, "d_model": 128, "encoder_layers": 2, "decoder_layers": 2}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 256}
        | {"max_source_positions": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        | {"decoder_start_token_id": 1},
    ),
    "wav2vec2": ("wav2vec2", "Wav2Vec2ForCTC", {**_TEXT, "vocab_size": 32}),
    "vit": ("vit", "ViTForImageClassification", {**_TEXT, "image_size": 64, "patch_size": 8}),
    "deit": ("deit", "DeiTForImageClassification", {**_TEXT, "image_size": 64, "patch_size": 8}),
    "swin": (
        "swin",
        "SwinForImageClassification",
        {"image_size": 64, "embed_dim": 48, "depths": [2, 2], "num_heads": [3, 6]}
        | {"window_size": 4},
    ),
    "convnext": (
        "convnext",
        "ConvNextForImageClassification",
        {"depths": [2, 2, 2, 2], "hidden_sizes": [32, 64, 128, 256]},
    ),
    "segformer": (
        "segformer",
        "SegformerForSemanticSegmentation",
        {"hidden_sizes": [32, 64, 160, 256], "num_labels": 10},
    ),
    "mobilevit": ("mobilevit", "MobileViTForImageClassification", {"image_size": 64}),
    "yolos": ("yolos", "YolosForObjectDetection", {**_TEXT, "image_size": [64, 64]}),
}


class Bottleneck(nn.Module):
    """Two convolutions around which the input passes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _conv(width, width), _conv(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Residual sum."""
        return x + self.second(self.first(x))


class C2f(nn.Module):
    """YOLOv8's block: half of a convolution passes, half goes through bottlenecks, all of it on."""

    def __init__(self, entering: int, leaving: int, blocks: int) -> None:
        super().__init__()
        self.half = leaving // 2
        self.first = _conv(entering, leaving, 1)
        self.blocks = nn.ModuleList(Bottleneck(self.half) for _ in range(blocks))
        self.last = _conv((2 + blocks) * self.half, leaving, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Chunk, blocks one after the other, concatenation."""
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Yolo(nn.Module):
    """Two scales of C2f blocks with a pooling pyramid, upsampling and a distribution head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 32, 3, 2), _conv(32, 64, 3, 2), C2f(64, 64, 1))
        self.deep = nn.Sequential(_conv(64, 128, 3, 2), C2f(128, 128, 2))
        self.reduce, self.widen = _conv(128, 64, 1), _conv(4 * 64, 128, 1)
        self.up = C2f(64 + 128, 64, 1)
        self.heads = nn.ModuleList(nn.Conv2d(w, 4 * 16 + 10, 1) for w in (64, 128))
        self.register_buffer("bins", torch.arange(16.0).reshape(1, 16, 1, 1))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Boxes as expectations over 16 bins, and classes, of both scales."""
        shallow = self.stem(x)
        deep = self.deep(shallow)
        pooled = [self.reduce(deep)]
        for _ in range(3):
            pooled.append(nn.functional.max_pool2d(pooled[-1], 5, 1, 2))
        deep = self.widen(torch.cat(pooled, 1))
        shallow = self.up(torch.cat([shallow, nn.functional.interpolate(deep, scale_factor=2)], 1))
        found = []
        for head, value in zip(self.heads, (shallow, deep), strict=True):
            boxes, classes = head(value).flatten(2).split((64, 10), 1)
            bins = boxes.unflatten(1, (4, 16)).transpose(1, 2).softmax(1)
            found.append(torch.cat([(bins * self.bins).sum(1), classes.sigmoid()], 1))
        return found


class Tagger(nn.Module):
    """An embedding, a recurrent layer or two, a class per token."""

    def __init__(self, kind: str, layers: int, *, both_ways: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(500, 64)
        recurrent = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind]
        self.recurrent = recurrent(64, 96, layers, bidirectional=both_ways, batch_first=True)
        self.classes = nn.Linear(192 if both_ways else 96, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of every token."""
        return self.classes(self.recurrent(self.embedding(x))[0])


class UNet(nn.Module):
    """Three scales with skip connections and transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64)
        self.down = nn.ModuleList(_conv(a, b) for a, b in zip((3, *widths), widths, strict=False))
        self.rise = nn.ModuleList(nn.ConvTranspose2d(w, w // 2, 2, 2) for w in (64, 32))
        self.up = nn.ModuleList(_conv(w, w // 2) for w in (64, 32))
        self.last = nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A map of classes."""
        kept = []
        for number, layer in enumerate(self.down):
            x = layer(nn.functional.max_pool2d(x, 2) if number else x)
            kept.append(x)
        for rise, up, skip in zip(self.rise, self.up, kept[-2::-1], strict=True):
            x = up(torch.cat([rise(x), skip], 1))
        return self.last(x)


def _conv(entering: int, leaving: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(entering, leaving, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(leaving),
        nn.SiLU(),
    )


def block(name: str, size: int) -> Made:
    """Architectures that none of the libraries holds."""
    tokens = (torch.randint(0, 500, (1, 20)),)
    made: dict[str, Callable[[], Made]] = {
        "yolo_c2f": lambda: (Yolo(), _image(size)),
        "unet": lambda: (UNet(), _image(size)),
        "lstm_tagger": lambda: (Tagger("lstm", 1, both_ways=False), tokens),
        "bilstm_tagger": lambda: (Tagger("lstm", 2, both_ways=True), tokens),
        "gru_tagger": lambda: (Tagger("gru", 2, both_ways=False), tokens),
        "bigru_tagger": lambda: (Tagger("gru", 1, both_ways=True), tokens),
        "rnn_tagger": lambda: (Tagger("rnn", 1, both_ways=False), tokens),
    }
    return made[name]()


def _image(size: int) -> Example:
    return (torch.randn(1, 3, size, size),)


def stir(model: nn.Module, example: Example) -> None:
    """Move what starts at zero or one, and take batch statistics from one random batch."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and float(parameter.std()) == 0:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3))
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        if norms:
            several = (torch.cat([torch.randn_like(x) for _ in range(2)]) for x in example)
            model(*several)
        model.eval()


SOURCES = {
    "torchvision": torchvision,
    "timm": timm,
    "transformers": transformers,
    "block": block,
}


def main() -> None:
    """Export what the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--exporter", choices=("torchscript", "dynamo"), default="torchscript")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    _library = declare()  # the declarations last as long as this does
    torch.manual_seed(0)
    source, name = given.model.split(":")
    model, example = SOURCES[source](name, given.size)
    model.eval()
    stir(model, example)
    dynamo = given.exporter == "dynamo"
    options = {"external_data": False} if dynamo else {}
    torch.onnx.export(
        model, example, str(given.out), dynamo=dynamo, opset_version=18 if dynamo else 17, **options
    )


if __name__ == "__main__":
    main()
