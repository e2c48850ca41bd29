"""How long the kernels of sessions take, by the runtime's own profile."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from onnxprune.runtime.session import Device

__all__ = ["Kernel", "kernels", "profiled"]

_NUMBERS = itertools.count()  # names that begin alike and are of one second would be one file


class Kernel(NamedTuple):
    """One run of a node's kernel, with its operator."""

    node: str
    operator: str
    microseconds: int


@contextmanager
def profiled(folder: str) -> Iterator[None]:
    """Sessions opened meanwhile write their profiles to `folder`, each when it ends."""
    options = Device.options

    def profiling(self: Device, *, optimize: bool) -> Any:
        made = options(self, optimize=optimize)
        made.enable_profiling = True
        made.profile_file_prefix = f"{folder}/{next(_NUMBERS)}"
        return made

    with mock.patch.object(Device, "options", profiling):
        yield


def kernels(file: Path) -> list[Kernel]:
    """What a profile says about kernels; its last bracket may be missing."""
    text = file.read_text(encoding="utf-8").strip()
    events = json.loads(text if text.endswith("]") else f"{text.rstrip(',')}]")
    return [
        Kernel(event["name"], event["args"]["op_name"], event["dur"])
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
