"""Models made without any framework: seeded, initialized like an untrained or a trained network.

Each function returns an `onnx_ir.Model` (opset 17, IR 8, dynamic batch) that `onnxprune.model.save`
writes. Weights follow He et al. (2015) before rectifiers and Glorot and Bengio (2010) elsewhere.
Biases, scales, shifts and running statistics are perturbed, the latter around what the variance
will be, so that an error in any of them changes the output.

Parameters are counted as `onnxprune.graph.cost.parameters` does: every float in the file, running
means and variances included.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.errors import ConfigError

from ._writer import Writer

__all__ = ["densenet", "lenet5", "mlp", "resnet", "resnet50", "vgg"]

_ACTIVATIONS = {
    "relu": "Relu",
    "leaky_relu": "LeakyRelu",
    "elu": "Elu",
    "softplus": "Softplus",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "none": "Identity",
}
_RECTIFIERS = ("relu", "leaky_relu", "elu", "softplus")
_OUTPUTS = {"softmax": "Softmax", "sigmoid": "Sigmoid"}


def mlp(
    sizes: Sequence[int],
    activation: str = "relu",
    seed: int = 0,
    form: str = "gemm",
    output: str | None = None,
) -> ir.Model:
    """A multilayer perceptron.

    Input `x` (N, sizes[0]), output `y` (N, sizes[-1]); sum over layers of a * b + b parameters.

    Args:
        sizes: features, width of every hidden layer, classes; at least two.
        activation: behind every hidden layer: relu, leaky_relu, elu, softplus, tanh, sigmoid, none.
        seed: of the weights.
        form: "gemm" for Gemm with transB, "matmul" for MatMul and Add.
        output: None for logits, else "softmax" or "sigmoid".

    Raises:
        ConfigError: fewer than two sizes, or an unknown activation, form or output.
    """
    _check_mlp(sizes, activation, form, output)
    writer = Writer("mlp", sizes[:1], seed)
    gain = 2.0 if activation in _RECTIFIERS else 1.0
    layer = writer.linear if form == "gemm" else writer.dense
    h = writer.x
    for number, width in enumerate(sizes[1:], start=1):
        last = number == len(sizes) - 1
        name = "y" if last and output is None else f"fc{number}"
        h = layer(h, width, name=name, gain=1.0 if last else gain)
        if not last:
            h = writer.op(_ACTIVATIONS[activation], h, name=f"act{number}")
    if output is not None:
        h = writer.op(_OUTPUTS[output], h, name="y")
    return writer.model(h)


def _check_mlp(sizes: Sequence[int], activation: str, form: str, output: str | None) -> None:
    if len(sizes) < 2:
        raise ConfigError(f"mlp: expected at least two sizes, got {list(sizes)}")
    for option, got, known in (
        ("activation", activation, list(_ACTIVATIONS)),
        ("form", form, ["gemm", "matmul"]),
        ("output", output, [None, *_OUTPUTS]),
    ):
        if got not in known:
            raise ConfigError(f"mlp: {option} {got!r} is none of {', '.join(map(str, known))}")


def lenet5(seed: int = 0) -> ir.Model:
    """The LeNet-5 of Caffe, as most pruning papers count it: 431,080 parameters, 2,293,000 MACs.

    Input `x` (N, 1, 28, 28), output `y` (N, 10). Conv 20x5x5 -> pool 2 -> conv 50x5x5 -> pool 2 ->
    fc 500 -> relu -> fc 10.
    """
    writer = Writer("lenet5", (1, 28, 28), seed)
    h = writer.conv(writer.x, 20, 5, name="conv1", bias=True, gain=1.0, pad=0)
    h = writer.max_pool(h, name="pool1")
    h = writer.conv(h, 50, 5, name="conv2", bias=True, gain=1.0, pad=0)
    h = writer.max_pool(h, name="pool2")
    h = writer.op("Flatten", h, name="flat", width=50 * 4 * 4, axis=1)
    h = writer.linear(h, 500, name="ip1", gain=2.0)
    return writer.model(writer.linear(writer.relu(h, name="relu1"), 10, name="y"))


def vgg(
    stages: Sequence[Sequence[int]] = ((32, 32), (64, 64), (128, 128)),
    hidden: int | None = 128,
    classes: int = 10,
    image: int = 32,
    seed: int = 0,
) -> ir.Model:
    """A small VGG (Simonyan and Zisserman, 2014) with BatchNormalization.

    Input `x` (N, 3, image, image), output `y` (N, classes). Each stage is its 3x3 convolutions,
    each with BatchNormalization and Relu, and a MaxPool. 552,362 parameters by default.

    Args:
        stages: width of every convolution, per stage.
        hidden: width of the fully connected layer behind the Flatten; None for the mean over all
            positions in place of both.
        classes: width of the output.
        image: side of the input; divisible by two as often as there are stages.
        seed: of the weights.
    """
    writer = Writer("vgg", (3, image, image), seed)
    h, number = writer.x, 0
    for stage, widths in enumerate(stages, start=1):
        for width in widths:
            number += 1
            h = writer.conv(h, width, 3, name=f"conv{number}", bias=True)
            h = writer.relu(writer.batch_norm(h, name=f"bn{number}"), name=f"relu{number}")
        h = writer.max_pool(h, name=f"pool{stage}")
    if hidden is None:
        return writer.model(writer.classifier(h, classes))
    side = image // 2 ** len(stages)
    h = writer.op("Flatten", h, name="flat", width=writer.width[h] * side**2, axis=1)
    h = writer.relu(writer.linear(h, hidden, name="fc1", gain=2.0), name="relu_fc1")
    return writer.model(writer.linear(h, classes, name="y"))


def resnet(
    depth: int = 20,
    batch_norm: bool = True,
    shortcut: str = "projection",
    classes: int = 10,
    image: int = 32,
    seed: int = 0,
) -> ir.Model:
    """A ResNet for CIFAR (He et al., 2015, arXiv:1512.03385, section 4.2).

    Input `x` (N, 3, image, image), output `y` (N, classes). Three stages of (depth - 2) / 6 blocks
    with 16, 32 and 64 channels. By default 274,042 parameters, 1,568 of them running statistics;
    271,098 with `shortcut="pad"`.

    Args:
        depth: 6 n + 2.
        batch_norm: without it convolutions have biases, as after folding.
        shortcut: where the width grows, "projection" for a 1x1 convolution (option B) or "pad" for
            a strided Slice and zero channels (option A).
        classes: width of the output.
        image: side of the input.
        seed: of the weights.

    Raises:
        ConfigError: another depth or an unknown shortcut.
    """
    if depth < 8 or depth % 6 != 2:
        raise ConfigError(f"resnet: depth {depth} is not 6 n + 2")
    if shortcut not in ("projection", "pad"):
        raise ConfigError(f"resnet: shortcut {shortcut!r} is none of projection, pad")
    writer = Writer(f"resnet{depth}", (3, image, image), seed)
    blocks = (depth - 2) // 6
    h = _conv_norm(writer, writer.x, 16, 3, name="stem", norm=batch_norm)
    h = writer.relu(h, name="stem.relu")
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(1, blocks + 1):
            stride = 2 if block == 1 and stage > 1 else 1
            name = f"stage{stage}.block{block}"
            h = _basic(writer, h, width, stride, name=name, norm=batch_norm, shortcut=shortcut)
    return writer.model(writer.classifier(h, classes))


def _conv_norm(
    writer: Writer,
    x: ir.Value,
    width: int,
    kernel: int,
    *,
    name: str,
    norm: bool,
    stride: int = 1,
    gain: float = 2.0,
) -> ir.Value:
    conv = writer.conv(
        x, width, kernel, name=f"{name}.conv", stride=stride, bias=not norm, gain=gain
    )
    return writer.batch_norm(conv, name=f"{name}.bn") if norm else conv


def _basic(
    writer: Writer, x: ir.Value, width: int, stride: int, *, name: str, norm: bool, shortcut: str
) -> ir.Value:
    """Two 3x3 convolutions around a shortcut; without normalization the last starts small."""
    h = _conv_norm(writer, x, width, 3, name=f"{name}.1", norm=norm, stride=stride)
    h = writer.relu(h, name=f"{name}.1.relu")
    h = _conv_norm(writer, h, width, 3, name=f"{name}.2", norm=norm, gain=2.0 if norm else 0.5)
    if stride != 1 and shortcut == "pad":
        x = _padded(writer, x, width, name=f"{name}.shortcut")
    elif stride != 1:
        x = _conv_norm(
            writer, x, width, 1, name=f"{name}.shortcut", norm=norm, stride=stride, gain=1.0
        )
    return writer.relu(writer.add(h, x, name=f"{name}.add"), name=f"{name}.out")


def _padded(writer: Writer, x: ir.Value, width: int, *, name: str) -> ir.Value:
    """Every second position, and zero channels on both sides."""
    bounds = {"starts": (0, 0), "ends": (2**31, 2**31), "axes": (2, 3), "steps": (2, 2)}
    inputs = [writer.integers(f"{name}.{part}", *numbers) for part, numbers in bounds.items()]
    h = writer.op("Slice", x, *inputs, name=f"{name}.slice")
    more = width - writer.width[x]
    pads = writer.integers(f"{name}.pads", 0, more // 2, 0, 0, 0, more - more // 2, 0, 0)
    return writer.op("Pad", h, pads, name=name, width=width)


def resnet50(classes: int = 1000, image: int = 224, seed: int = 0) -> ir.Model:
    """A graph of the size of ResNet-50 (He et al., 2015, table 1), for timing.

    Input `x` (N, 3, image, image), output `y` (N, classes). Bottleneck blocks (3, 4, 6, 3) with the
    stride in the 3x3 convolution, as torchvision has it. By default 25,610,152 parameters, 53,120
    of them running statistics, and 4.09 G MACs.
    """
    writer = Writer("resnet50", (3, image, image), seed)
    h = writer.conv(writer.x, 64, 7, name="stem.conv", stride=2)
    h = writer.relu(writer.batch_norm(h, name="stem.bn"), name="stem.relu")
    h = writer.max_pool(h, name="stem.pool", kernel=3, pad=1)
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for block in range(1, blocks + 1):
            stride = 2 if block == 1 and stage > 1 else 1
            h = _bottleneck(writer, h, width, stride, name=f"stage{stage}.block{block}")
    return writer.model(writer.classifier(h, classes))


def _bottleneck(writer: Writer, x: ir.Value, width: int, stride: int, *, name: str) -> ir.Value:
    h = x
    for number, (channels, kernel) in enumerate(((width, 1), (width, 3)), start=1):
        step = stride if kernel == 3 else 1
        h = _conv_norm(writer, h, channels, kernel, name=f"{name}.{number}", norm=True, stride=step)
        h = writer.relu(h, name=f"{name}.{number}.relu")
    h = _conv_norm(writer, h, 4 * width, 1, name=f"{name}.3", norm=True)
    if writer.width[x] != 4 * width:
        x = _conv_norm(writer, x, 4 * width, 1, name=f"{name}.shortcut", norm=True, stride=stride)
    return writer.relu(writer.add(h, x, name=f"{name}.add"), name=f"{name}.out")


def densenet(
    layers: Sequence[int] = (4, 4, 4),
    growth: int = 12,
    classes: int = 10,
    image: int = 32,
    seed: int = 0,
) -> ir.Model:
    """A small DenseNet (Huang et al., 2016, arXiv:1608.06993) without bottlenecks.

    Input `x` (N, 3, image, image), output `y` (N, classes). Every layer is BatchNormalization,
    Relu and a 3x3 convolution of `growth` channels that are concatenated to what came in; between
    blocks a 1x1 convolution to half of the channels and an average over 2x2. 78,550 parameters by
    default.

    Args:
        layers: number of layers per block.
        growth: channels that each layer adds.
        classes: width of the output.
        image: side of the input.
        seed: of the weights.
    """
    writer = Writer("densenet", (3, image, image), seed)
    h = writer.conv(writer.x, 2 * growth, 3, name="stem")
    for block, count in enumerate(layers, start=1):
        if block > 1:
            h = _transition(writer, h, name=f"transition{block - 1}")
        for layer in range(1, count + 1):
            name = f"block{block}.layer{layer}"
            normed = writer.relu(writer.batch_norm(h, name=f"{name}.bn"), name=f"{name}.relu")
            made = writer.conv(normed, growth, 3, name=f"{name}.conv")
            h = writer.concat(h, made, name=name)
    h = writer.relu(writer.batch_norm(h, name="last.bn"), name="last.relu")
    return writer.model(writer.classifier(h, classes))


def _transition(writer: Writer, x: ir.Value, *, name: str) -> ir.Value:
    h = writer.relu(writer.batch_norm(x, name=f"{name}.bn"), name=f"{name}.relu")
    h = writer.conv(h, writer.width[h] // 2, 1, name=f"{name}.conv")
    return writer.op("AveragePool", h, name=name, kernel_shape=[2, 2], strides=[2, 2])
