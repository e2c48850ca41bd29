"""`onnxprune env`: the versions that a bug report needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import click

from . import _render

__all__ = ["env", "versions"]

_PACKAGES = ("onnxprune", "onnx", "onnx-ir", "numpy", "scipy", "protobuf", "click", "rich")
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-training", "onnxruntime-training-cpu")


def versions() -> dict[str, str | None]:
    """Versions by name; None where something is not installed. Runtimes only where they are."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": str(os.cpu_count()),
    }
    installed = {name: _version(name) for name in (*_PACKAGES, *_RUNTIMES)}
    shown = {name: text for name, text in installed.items() if text or name not in _RUNTIMES}
    return found | shown


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def env(*, as_json: bool) -> None:
    """Show the versions of everything involved, for bug reports."""
    found = versions()
    _render.mapping(found, as_json=as_json)
    runtimes = [name for name in _RUNTIMES if name in found]
    if not runtimes:
        _render.note('no onnxruntime is installed; pip install "onnxprune[cpu]"')
    if len(runtimes) > 1:
        _render.note(
            f"{' and '.join(runtimes)} overwrite each other in one folder: uninstall all of them, "
            'then pip install "onnxprune[cpu]"'
        )
