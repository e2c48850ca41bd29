"""Make digits_mlp.onnx: scikit-learn's MLPClassifier, exported by skl2onnx.

A 64-128-64-10 perceptron with relu. `zipmap` is off, so that the probabilities are a tensor; input
name, output names and opset are the exporter's defaults.

    pip install scikit-learn==1.9.1 skl2onnx==1.20.0 onnx==1.23.2 numpy==2.4.6
    PYTHONHASHSEED=0 python models/make/sklearn_mlp.py models/
"""

from __future__ import annotations

import argparse
from pathlib import Path

from digits import load
from saving import save
from skl2onnx import to_onnx
from sklearn.neural_network import MLPClassifier


def main() -> None:
    """Train the perceptron and write it to the folder given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write digits_mlp.onnx")
    folder = parser.parse_args().folder
    data = load()
    x_train = data.x_train.reshape(-1, 64)
    classifier = MLPClassifier(hidden_layer_sizes=(128, 64), batch_size=32, random_state=0)
    classifier.fit(x_train, data.y_train)
    model = to_onnx(classifier, x_train[:1], options={"zipmap": False})
    save(model, folder / "digits_mlp.onnx")


if __name__ == "__main__":
    main()
