"""Files on disk that appear whole or not at all, and a model's data file beside it.

Only paths and bytes are known here; what is in the files is the business of `onnxprune.model`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

__all__ = ["free_data_name", "move_into_place", "remove_data", "sync", "try_lock", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Write or replace a text file in one step."""
    with tempfile.TemporaryDirectory(prefix=".onnxprune-", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Raises:
        OSError: the disk refuses.
    """
    if path.is_dir() and os.name == "nt":
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_lock(file: IO[bytes]) -> bool:
    """Lock an open file for this process until it is closed; False when another one has it.

    Where the system or its file system knows no locks, everybody gets one.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def free_data_name(target: Path) -> str:
    """`<target>.data`, or `<target>.<n>.data` with the first n that is free."""
    numbers = ("", *(f".{number}" for number in range(1, 1000)))
    names = (f"{target.name}{number}.data" for number in numbers)
    return next(name for name in names if not os.path.lexists(target.with_name(name)))


def move_into_place(draft: Path, target: Path, data: str | None) -> None:
    """The data under its new name first, the model that reads it last."""
    moved = None
    if data is not None and draft.with_name(data).stat().st_size:
        moved = target.with_name(data)
        os.replace(draft.with_name(data), moved)
    try:
        os.replace(draft, target)
    except OSError:
        if moved is not None:
            moved.unlink()
        raise


def remove_data(files: Iterable[Path], target: Path) -> None:
    """Remove data files named after `target` that no other model in its folder mentions."""
    name = re.compile(rf"{re.escape(target.name)}(\.\d+)?\.data")
    others = [file for file in target.parent.glob("*.onnx") if file.name != target.name]
    for file in files:
        own = file.parent == target.parent.resolve() and name.fullmatch(file.name)
        if own and not any(_mentions(other, file.name) for other in others):
            with contextlib.suppress(OSError):
                file.unlink()


def _mentions(file: Path, name: str) -> bool:
    """Whether the bytes of `name` occur in `file`; also when it cannot be read, to be safe."""
    try:
        return name.encode() in file.read_bytes()
    except OSError:
        return True
