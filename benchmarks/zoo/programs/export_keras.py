"""Export one Keras architecture with random weights through tf2onnx.

    python export_keras.py NAME OUT

Runs in an environment with TensorFlow, Keras and tf2onnx; nothing of the package is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow
import tf2onnx
from keras import layers

_IMAGE = (64, 64, 3)
_APPLICATIONS: dict[str, str] = {
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3_small": "MobileNetV3Small",
    "resnet50_v2": "ResNet50V2",
    "densenet121": "DenseNet121",
    "efficientnet_v2_b0": "EfficientNetV2B0",
    "nasnet_mobile": "NASNetMobile",
    "xception": "Xception",
}


def application(name: str) -> keras.Model:
    """One of Keras's own architectures."""
    size = {"nasnet_mobile": 224, "xception": 96}.get(name, 64)
    make = getattr(keras.applications, _APPLICATIONS[name])
    return make(weights=None, input_shape=(size, size, 3), classes=10)


def text_cnn() -> keras.Model:
    """An embedding and three convolutions side by side."""
    tokens = keras.Input((24,), dtype="int32")
    x = layers.Embedding(300, 64)(tokens)
    found = [
        layers.GlobalMaxPooling1D()(layers.Conv1D(48, k, activation="relu")(x)) for k in (3, 4, 5)
    ]
    return keras.Model(tokens, layers.Dense(5)(layers.Concatenate()(found)))


def recurrent(cell: type[layers.Layer]) -> keras.Model:
    """An embedding, a recurrent layer both ways, a class per token."""
    tokens = keras.Input((24,), dtype="int32")
    x = layers.Embedding(300, 64)(tokens)
    x = layers.Bidirectional(cell(48, return_sequences=True))(x)
    return keras.Model(tokens, layers.Dense(5)(x))


def transformer() -> keras.Model:
    """Two encoder blocks."""
    tokens = keras.Input((24,), dtype="int32")
    x = layers.Embedding(300, 64)(tokens)
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(4, 16)(x, x))
        inner = layers.Dense(64)(layers.Dense(128, activation="gelu")(x))
        x = layers.LayerNormalization()(x + inner)
    return keras.Model(tokens, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


def unet() -> keras.Model:
    """Three scales with skip connections."""
    image = keras.Input(_IMAGE)
    x, kept = image, []
    for width in (16, 32, 64):
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        x = layers.BatchNormalization()(x)
        kept.append(x)
        x = layers.MaxPooling2D()(x)
    for width, skip in zip((64, 32, 16), kept[::-1], strict=True):
        x = layers.Concatenate()([layers.UpSampling2D()(x), skip])
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
    return keras.Model(image, layers.Conv2D(2, 1)(x))


_OTHERS: dict[str, Callable[[], keras.Model]] = {
    "text_cnn": text_cnn,
    "lstm": lambda: recurrent(layers.LSTM),
    "gru": lambda: recurrent(layers.GRU),
    "transformer": transformer,
    "unet": unet,
}


def main() -> None:
    """Export what the command line names."""
    name, out = sys.argv[1:3]
    keras.utils.set_random_seed(0)
    model = application(name) if name in _APPLICATIONS else _OTHERS[name]()
    stir(model)
    shape = model.inputs[0]
    signature = [tensorflow.TensorSpec((1, *shape.shape[1:]), shape.dtype, name="x")]
    function = tensorflow.function(lambda x: model(x, training=False), input_signature=signature)
    tf2onnx.convert.from_function(function, signature, opset=17, output_path=out)


def stir(model: keras.Model) -> None:
    """Move what starts at zero or one, so that batch statistics and biases do something."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        value = np.asarray(variable)
        if value.dtype == np.float32 and value.size > 1 and float(value.std()) == 0:
            variable.assign(value + rng.uniform(-0.3, 0.3, value.shape))


if __name__ == "__main__":
    main()
