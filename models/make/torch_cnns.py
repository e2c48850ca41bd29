"""Make the PyTorch models: digits_lenet, digits_resnet, digits_densenet and digits_vgg.

* lenet: TorchScript exporter; convolutions, pooling, fully connected layers.
* resnet: dynamo exporter; the BatchNormalizations are folded into the convolutions by it.
* densenet: dynamo exporter; BN-ReLU-Conv before each Concat, so that no BN can be folded.
* vgg: TorchScript exporter told to fold nothing, so that Conv-BN-ReLU stays three nodes.

    pip install torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 onnx-ir==1.1.0 numpy==2.4.6
    python models/make/torch_cnns.py models/
    python models/make/torch_cnns.py models/ --only resnet

The dynamo exporter writes a Python stack trace with absolute paths into the metadata of every node;
`saving.save` drops those entries (key `pkg.torch.onnx.stack_trace`) and keeps the others.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import onnx
import torch
from digits import load
from saving import save
from torch import Tensor, nn
from torch.nn import functional

EPOCHS = 40
BATCH = 32
EXAMPLE = torch.zeros(2, 1, 8, 8)


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias: a BatchNormalization comes before or after it."""
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)


def lenet() -> nn.Module:
    """LeNet for 8x8 images."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(24, 48, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(48 * 4, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


class ResidualBlock(nn.Module):
    """Two Conv-BN with a shortcut: identity, or a projection where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        """Make the block; `stride` applies to the first convolution and the projection."""
        super().__init__()
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = conv3x3(channels_out, channels_out)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """Post-activation: the ReLU comes after the addition."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet() -> nn.Module:
    """A stem and four residual blocks, two of them with a projection."""
    return nn.Sequential(
        conv3x3(1, 16),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        ResidualBlock(16, 16),
        ResidualBlock(16, 24, stride=2),
        ResidualBlock(24, 24),
        ResidualBlock(24, 32, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


class DenseLayer(nn.Module):
    """BN-ReLU-Conv whose output is concatenated to its input."""

    def __init__(self, channels: int, growth: int) -> None:
        """Make a layer that adds `growth` channels to `channels`."""
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = conv3x3(channels, growth)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, channels + growth, H, W)."""
        return torch.cat([x, self.conv(functional.relu(self.bn(x)))], dim=1)


def densenet(growth: int = 12) -> nn.Module:
    """A stem, two dense blocks of four layers, and a transition between them."""
    return nn.Sequential(
        conv3x3(1, 16),
        *(DenseLayer(16 + i * growth, growth) for i in range(4)),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 32, 1, bias=False),
        nn.AvgPool2d(2),
        *(DenseLayer(32 + i * growth, growth) for i in range(4)),
        nn.BatchNorm2d(80),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(80, 10),
    )


def conv_bn_relu(channels_in: int, channels_out: int) -> list[nn.Module]:
    """One layer of a VGG with batch normalization."""
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    return [conv, nn.BatchNorm2d(channels_out), nn.ReLU()]


def vgg() -> nn.Module:
    """Four Conv-BN-ReLU in two stages, then two fully connected layers."""
    return nn.Sequential(
        *conv_bn_relu(1, 16),
        *conv_bn_relu(16, 24),
        nn.MaxPool2d(2),
        *conv_bn_relu(24, 32),
        *conv_bn_relu(32, 48),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(48 * 4, 96),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(96, 10),
    )


def train(model: nn.Module, learning_rate: float = 3e-3) -> nn.Module:
    """Train `model` with AdamW and a cosine schedule; return it in evaluation mode."""
    data = load()
    x, y = torch.from_numpy(data.x_train).unsqueeze(1), torch.from_numpy(data.y_train)
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(x))[: len(x) // BATCH * BATCH]
        for batch in order.view(-1, BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def torchscript(model: nn.Module, opset: int, *, fold: bool = True) -> onnx.ModelProto:
    """Export by tracing; with `fold` off, BatchNormalizations stay nodes of their own."""
    mode = torch.onnx.TrainingMode
    buffer = io.BytesIO()
    torch.onnx.export(
        model,
        (EXAMPLE,),
        buffer,
        dynamo=False,
        opset_version=opset,
        training=mode.EVAL if fold else mode.PRESERVE,
        do_constant_folding=fold,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
    )
    return onnx.load_from_string(buffer.getvalue())


def dynamo(model: nn.Module, opset: int) -> onnx.ModelProto:
    """Export through torch.export."""
    program = torch.onnx.export(
        model,
        (EXAMPLE,),
        dynamo=True,
        opset_version=opset,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    return program.model_proto


def export(name: str, model: nn.Module) -> onnx.ModelProto:
    """Export each model with the exporter and opset the module docstring promises."""
    if name == "lenet":
        return torchscript(model, 17)
    if name == "vgg":
        return torchscript(model, 15, fold=False)
    return dynamo(model, 18 if name == "resnet" else 20)


BUILDERS = {"lenet": lenet, "resnet": resnet, "densenet": densenet, "vgg": vgg}


def main() -> None:
    """Train the models and write them to the folder given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write the .onnx files")
    parser.add_argument("--only", choices=BUILDERS, help="make one model instead of all")
    arguments = parser.parse_args()
    for name in [arguments.only] if arguments.only else BUILDERS:
        torch.manual_seed(0)
        model = train(BUILDERS[name]())
        save(export(name, model), arguments.folder / f"digits_{name}.onnx")


if __name__ == "__main__":
    main()
