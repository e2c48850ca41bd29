"""The data every model in this folder is trained on.

Entry: `load`. It reads the digits file of the repository and scales the pixels to [0, 1]; each
script then reshapes them to the layout that is natural in its framework.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SOURCE = Path(__file__).resolve().parents[2] / "onnxprune" / "data" / "digits.npz"
"""scikit-learn's digits: 1437 training and 360 test images, 8x8, values 0 to 16."""


class Digits(NamedTuple):
    """Images as (N, 8, 8) float32 in [0, 1]; labels as (N,) int64 in 0..9."""

    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]


def load() -> Digits:
    """Read the digits and scale the pixels to [0, 1]."""
    with np.load(SOURCE) as file:
        images = {name: file[name].astype(np.float32) / 16 for name in ("x_train", "x_test")}
        labels = {name: file[name].astype(np.int64) for name in ("y_train", "y_test")}
    return Digits(images["x_train"], labels["y_train"], images["x_test"], labels["y_test"])
