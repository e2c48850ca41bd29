"""Architectures that a framework exports here, in an environment of its own, with random weights.

Torch-Pruning's list is the 85 torchvision models of its examples/torchvision_models/readme.md.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from zoo.children import available, run
from zoo.entries import Entry, Places, UnavailableError

__all__ = ["TORCH_PRUNING_FAILS", "exports"]

TORCH_PRUNING_FAILS = (
    *("raft_large", "swin_t", "swin_s", "swin_b"),
    *(f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")),
)
"""What Torch-Pruning's own table says it cannot prune."""

# family -> models, with the size of the image where it is not 64
_TORCHVISION: dict[str, str] = {
    "detection": "ssdlite320_mobilenet_v3_large@320 ssd300_vgg16@300 "
    "fasterrcnn_resnet50_fpn@128 fasterrcnn_resnet50_fpn_v2@128 "
    "fasterrcnn_mobilenet_v3_large_320_fpn@128 "
    "fasterrcnn_mobilenet_v3_large_fpn@128 fcos_resnet50_fpn@128 "
    "keypointrcnn_resnet50_fpn@128 maskrcnn_resnet50_fpn_v2@128 "
    "retinanet_resnet50_fpn_v2@128",
    "segmentation": "fcn_resnet50 fcn_resnet101 deeplabv3_resnet50 deeplabv3_resnet101 "
    "deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large",
    "optical flow": "raft_large@128",
    "transformer": "vit_b_16 vit_b_32 vit_l_16 vit_l_32 vit_h_14@56 swin_t swin_s swin_b",
    "convolution": "alexnet@224 convnext_tiny convnext_small convnext_base convnext_large "
    "densenet121 densenet169 densenet201 densenet161 efficientnet_b0 "
    "efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 "
    "efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_s "
    "efficientnet_v2_m efficientnet_v2_l googlenet inception_v3@96 mnasnet0_5 "
    "mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large "
    "mobilenet_v3_small regnet_y_400mf regnet_y_800mf regnet_y_1_6gf "
    "regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf regnet_y_128gf "
    "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d "
    "resnext101_32x8d wide_resnet50_2 wide_resnet101_2 shufflenet_v2_x0_5 "
    "shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0 "
    "squeezenet1_1 vgg11@224 vgg13@224 vgg16@224 vgg19@224 vgg11_bn@224 "
    "vgg13_bn@224 vgg16_bn@224 vgg19_bn@224",
}
# More than about 200 MB, each of the topology of a smaller one in the list.
_LARGE = frozenset(
    (
        *("vit_b_16", "vit_l_16", "vit_l_32", "vit_h_14", "swin_s", "swin_b", "regnet_y_16gf"),
        *("convnext_small", "convnext_base", "convnext_large", "regnet_y_32gf", "regnet_y_128gf"),
        *("regnet_y_8gf", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7"),
        *("efficientnet_v2_m", "efficientnet_v2_l", "resnet101", "resnet152"),
        *("resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2", "fcn_resnet101"),
        *("deeplabv3_resnet101", "vgg11", "vgg13", "vgg16", "vgg19", "vgg13_bn", "vgg16_bn"),
        *("vgg19_bn", "densenet201", "densenet161"),
    )
)
_TIMM: dict[str, str] = {
    "convolution": "dla34 dpn48b ese_vovnet19b_dw ghostnet_100 gernet_s hardcorenas_a "
    "hrnet_w18_small lcnet_050 mixnet_s mobilenetv4_conv_small mobileone_s0 "
    "nf_regnet_b0 regnetx_002 regnetz_b16 repghostnet_050 repvgg_a0 "
    "res2net50_26w_4s resnest14d resnetv2_50 rexnet_100 semnasnet_075 "
    "skresnet18 spnasnet_100 starnet_s1 tf_efficientnet_lite0 tinynet_e "
    "xception41 cspresnet50 cspdarknet53 eca_resnet33ts selecsls42b "
    "inception_next_tiny convnextv2_atto fastvit_t8 hgnet_tiny gcresnet33ts "
    "edgenext_xx_small",
    "transformer": "cait_xxs24_224 coat_lite_tiny@224 coatnet_nano_rw_224@224 "
    "crossvit_tiny_240@240 convit_tiny deit_tiny_patch16_224 "
    "efficientformer_l1@224 efficientvit_b0 efficientvit_m0@224 "
    "levit_128s@224 maxvit_pico_rw_256@256 mobilevit_xxs mobilevitv2_050 "
    "mvitv2_tiny@224 pit_ti_224@224 poolformer_s12 pvt_v2_b0 "
    "swinv2_cr_tiny_ns_224@224 swin_tiny_patch4_window7_224@224 "
    "tiny_vit_5m_224@224 tnt_s_patch16_224@224 twins_svt_small "
    "volo_d1_224@224 visformer_tiny@224 xcit_nano_12_p16_224 "
    "vit_tiny_patch16_224 focalnet_tiny_srf gcvit_xxtiny@224 "
    "hiera_tiny_224@224 eva02_tiny_patch14_224@56",
    "perceptron": "mixer_s32_224@224 resmlp_12_224@224 gmlp_ti16_224@224",
}
_TRANSFORMERS = {
    "language": "bert roberta distilbert electra albert deberta-v2 t5",
    "speech": "whisper wav2vec2",
    "vision transformer": "vit deit swin convnext segformer mobilevit yolos",
}
_DECODERS = "gpt2 gpt_neox llama qwen2 phi3"  # these need the newer exporter
_BLOCKS = {
    "detection": "yolo_c2f",
    "segmentation": "unet",
    "tagger": "lstm_tagger bilstm_tagger gru_tagger bigru_tagger rnn_tagger",
}
_BOTH = (
    *("torchvision:resnet18", "torchvision:shufflenet_v2_x0_5", "torchvision:mobilenet_v2"),
    *("torchvision:densenet121", "torchvision:efficientnet_b0", "torchvision:swin_t"),
    *("transformers:bert", "transformers:vit", "block:yolo_c2f", "block:bilstm_tagger"),
)
"""Exported by both exporters of PyTorch."""
_KERAS = "mobilenet_v2 mobilenet_v3_small resnet50_v2 densenet121 efficientnet_v2_b0 nasnet_mobile "
_KERAS += "xception text_cnn lstm gru transformer unet"
_JAX = "mlp_mixer cnn resnet transformer lstm equinox_cnn"


def exports() -> Iterator[Entry]:
    """All of them."""
    sources = {"torchvision": _TORCHVISION, "timm": _TIMM, "transformers": _TRANSFORMERS}
    for source, families in (*sources.items(), ("block", _BLOCKS)):
        for family, names in families.items():
            for word in names.split():
                name, _, size = word.partition("@")
                yield _torch(source, name, family, int(size or 64))
    for name in _DECODERS.split():
        yield _torch("transformers", name, "language", 64, exporter="dynamo")
    for model in _BOTH:
        source, name = model.split(":")
        yield _torch(source, name, "newer exporter", 64, exporter="dynamo", ending="/dynamo")
    for framework, names in (("keras", _KERAS), ("jax", _JAX)):
        for name in names.split():
            make = functools.partial(_other, framework, name)
            yield Entry(name=f"{framework}/{name}", family=framework, source=framework, make=make)


def _torch(
    source: str,
    name: str,
    family: str,
    size: int,
    *,
    exporter: str = "torchscript",
    ending: str = "",
) -> Entry:
    return Entry(
        name=f"{source}/{name}{ending}",
        family=family,
        source=f"{source}, {exporter}",
        make=functools.partial(_with_torch, f"{source}:{name}", size, exporter),
        large=source == "torchvision" and name in _LARGE,
    )


def _with_torch(model: str, size: int, exporter: str, out: Path, places: Places) -> None:
    source = model.split(":")[0]
    needed = ("torch", "onnxscript", *(() if source == "block" else (source,)))
    arguments = (model, out, "--size", size, "--exporter", exporter)
    _export(places.torch, "export_torch.py", arguments, needed, places)


def _other(framework: str, name: str, out: Path, places: Places) -> None:
    needed = {"keras": ("keras", "tf2onnx"), "jax": ("flax", "jax2onnx")}[framework]
    python = {"keras": places.keras, "jax": places.jax}[framework]
    _export(python, f"export_{framework}.py", (name, out), needed, places)


def _export(
    python: str,
    program: str,
    arguments: tuple[object, ...],
    needed: tuple[str, ...],
    places: Places,
) -> None:
    if not available(python, *needed):
        raise UnavailableError(f"{python} has not all of {', '.join(needed)}")
    ended = run(python, program, arguments, seconds=places.seconds, gigabytes=places.gigabytes)
    if ended.problem:
        raise UnavailableError(f"export: {ended.problem}")
