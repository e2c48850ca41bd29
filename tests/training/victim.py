"""A run that kills itself, in a process of its own: `python victim.py RUN MOMENT`.

MOMENT is "event:7", at the seventh event; "sync:3", at the third file of a checkpoint that goes to
the disk; "remove:1", in the middle of a removal; or "never". SIGKILL leaves no time for anything.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxprune
from onnxprune.training import checkpoint, loop


def main(folder: Path, moment: str) -> None:
    kind, _, number = moment.partition(":")
    left = {kind: int(number or 0)}

    def passes(what: str) -> None:
        left[what] = left.get(what, 0) - 1
        if left[what] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            passes(what)
            return function(*arguments, **options)

        return wrapped

    checkpoint.sync = before("sync", checkpoint.sync)  # type: ignore[attr-defined]
    loop.apply = before("remove", loop.apply)  # type: ignore[attr-defined]
    options = json.loads((folder / "options.json").read_text())
    onnxprune.train(
        folder / "model.onnx",
        folder / "data.npz",
        output=folder / "killed.onnx",
        run_directory=str(folder / "killed"),
        on_event=lambda _event: passes("event"),
        **options,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
