"""How every model of this folder reaches its file.

Entry: `save`. The graph is written as its exporter made it, except for one thing: some exporters
record where in the Python source a node came from, as an absolute path of the machine that ran
them. `save` drops those stack traces and paths, and nothing else: other metadata stays.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 300_000
_PATH = re.compile(r'File "|\.py[:"]|(?:^|[\s"\'(=])/(?:[\w.+-]+/)+[\w.+-]+')
"""A Python stack trace, a source line (`x.py:12`) or an absolute path."""


def save(model: onnx.ModelProto, path: Path) -> None:
    """Strip stack traces from `model`, check what is left, and write it to `path`.

    Args:
        model: changed in place.
        path: the file to write.

    Raises:
        ValueError: if the file would exceed `MAX_BYTES`.
    """
    for message in (model, model.graph, *model.graph.node, *model.graph.value_info):
        _strip(message)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path.name}: {len(content)} bytes, more than {MAX_BYTES}")
    path.write_bytes(content)


def _strip(
    message: onnx.ModelProto | onnx.GraphProto | onnx.NodeProto | onnx.ValueInfoProto,
) -> None:
    """Remove the metadata entries and the doc string of `message` that hold paths."""
    kept = [entry for entry in message.metadata_props if not _PATH.search(entry.value)]
    if len(kept) < len(message.metadata_props):
        copies = [onnx.StringStringEntryProto(key=entry.key, value=entry.value) for entry in kept]
        del message.metadata_props[:]
        message.metadata_props.extend(copies)
    if _PATH.search(message.doc_string):
        message.doc_string = ""
