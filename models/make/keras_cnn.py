"""Make digits_keras.onnx: a Keras convolutional network in NHWC, exported by tf2onnx.

tf2onnx is called by Keras itself, through `Model.export(format="onnx")`: on its own,
`tf2onnx.convert.from_keras` fails on a Keras 3 model (KeyError on the output name).

Two stages of Conv2D, BatchNormalization and max pooling, then Flatten, Dense and a softmax. The
exporter turns some BatchNormalization layers into other nodes: see the table in README.md.

    pip install tensorflow-cpu==2.21.0 keras==3.15.1 tf2onnx==1.17.0 onnx==1.23.2 numpy==2.4.6
    KERAS_BACKEND=tensorflow python models/make/keras_cnn.py models/
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import keras
import onnx
import tensorflow as tf
from digits import load
from keras import layers
from saving import save

EPOCHS = 40
BATCH = 32
OPSET = 18


def build() -> keras.Model:
    """The network: pixels (N, 8, 8, 1) to probabilities (N, 10)."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(24, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Conv2D(48, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(96, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3, seed=0),
            layers.Dense(10, activation="softmax"),
        ],
        name="digits_keras",
    )


def train() -> keras.Model:
    """Train the network with Adam and a cosine schedule."""
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    data = load()
    model = build()
    steps = EPOCHS * -(-len(data.x_train) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    model.fit(data.x_train[..., None], data.y_train, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    return model


def main() -> None:
    """Train the network and write it to the folder given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write digits_keras.onnx")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as scratch:
        exported = Path(scratch) / "exported.onnx"
        train().export(str(exported), format="onnx", opset_version=OPSET, verbose=False)
        save(onnx.load(exported), folder / "digits_keras.onnx")


if __name__ == "__main__":
    main()
