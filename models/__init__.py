"""Small trained models of handwritten digits, each as its framework's exporter wrote it.

Entry: `path`. README.md in this folder lists the models; `make/` holds the scripts that trained and
exported them. Installed as the package `onnxprune_models`, which imports nothing but the standard
library.
"""

from __future__ import annotations

import pathlib

__all__ = ["path"]

_FOLDER = pathlib.Path(__file__).resolve().parent


def path(name: str) -> pathlib.Path:
    """Find a model that is shipped in this package.

    Args:
        name: the file name without its suffix, such as `"digits_mlp"`.

    Returns:
        The path of the ONNX file.

    Raises:
        ValueError: if there is no such model; the message lists those there are.
    """
    files = {file.stem: file for file in sorted(_FOLDER.glob("*.onnx"))}
    if name not in files:
        raise ValueError(f"no model named {name!r}; available: {', '.join(files)}")
    return files[name]
