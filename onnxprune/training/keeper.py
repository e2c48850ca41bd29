"""When checkpoints are written, which are kept, and which one a run goes on from.

What a run computes never depends on the clock. Rounds that draw random numbers must end where a
checkpoint could be (`training.loop`), so these places, the candidates, are fixed by the steps; the
clock only decides at which of them one is written.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from onnxprune.errors import DataError
from onnxprune.reports import RunDirectory
from onnxprune.storage import sync
from onnxprune.training.cadence import Cadence, parse_cadence
from onnxprune.training.checkpoint import Checkpoint, Writer, read_checkpoint
from onnxprune.training.config import RunConfig
from onnxprune.training.pruning import Stage

__all__ = ["Keeper", "newest"]

_log = logging.getLogger(__name__)

_FOLDER = "checkpoints"
_STEP = re.compile(r"step-(\d+)")
_SHARE = 0.03  # of the time that checkpoints may take, where minutes say when


class Keeper:
    """The checkpoints of one run.

    A checkpoint that cannot be written ends nothing: the last one stays, and the report says so.

    Args:
        directory: of the run.
        first: the stage the run began with.
        config: says when to write, and how many to keep.
        epoch_steps: steps per epoch.
        clock: seconds since any moment.

    Attributes:
        notes: what the report should say.
    """

    def __init__(
        self,
        directory: RunDirectory,
        first: Stage,
        config: RunConfig,
        epoch_steps: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = directory
        self.notes: tuple[str, ...] = ()
        self._cadence = parse_cadence(config.checkpoint_every)
        self._most = config.keep_checkpoints
        self._writer = Writer(first)
        self._epoch_steps = epoch_steps
        self._clock = clock
        self._last, self._cost = clock(), 0.0

    def is_candidate(self, step: int, *, draws: bool) -> bool:
        """Whether a checkpoint could be written after `step` steps, whatever the clock says."""
        return step % self._cadence.stride(self._epoch_steps, draws=draws) == 0

    def is_due(self) -> bool:
        """Whether a candidate is to be written now."""
        cadence = self._cadence
        if cadence.seconds is None:
            return cadence != Cadence()
        return self._clock() - self._last >= max(cadence.seconds, self._cost / _SHARE)

    def keep(self, checkpoint: Checkpoint) -> None:
        """Write `checkpoint`, then remove those that are too old."""
        if self._cadence == Cadence():
            return
        folder = self.directory.path / _FOLDER / f"step-{checkpoint.step:09d}"
        if folder.exists():  # a run that goes on from it and is stopped at once
            return
        started = self._clock()
        try:
            folder.parent.mkdir(exist_ok=True)
            sync(self.directory.records)
            self._writer.write(folder, checkpoint)
        except OSError as error:
            self._failed(checkpoint.step, error)
        else:
            for old in _folders(self.directory)[self._most :]:
                _remove(old)
        self._last = self._clock()
        self._cost = self._last - started

    def _failed(self, step: int, error: OSError) -> None:
        kept = next((str(_step(folder)) for folder in _folders(self.directory)), None)
        note = (
            f"the checkpoint of step {step} could not be written ({error.strerror or error}); "
            + (f"that of step {kept} is the last one" if kept else "there is none yet")
        )
        _log.warning("%s: %s", self.directory.path, note)
        self.notes = (note,)


def newest(directory: RunDirectory, first: Stage, config: RunConfig) -> Checkpoint | None:
    """The last checkpoint of a run that is whole; None when it never wrote one.

    Later ones that are damaged, and what a crash left half written, are removed.

    Raises:
        DataError: there are some, but all are damaged.
    """
    folders = _folders(directory)
    found: Checkpoint | None = None
    damaged: list[tuple[Path, DataError]] = []
    for folder in folders:
        try:
            found = read_checkpoint(folder, first, config)
            break
        except DataError as error:
            damaged.append((folder, error))
            _log.warning("%s; going back to the one before", error)
    if folders and found is None:
        raise DataError(
            f"{directory.path}: no checkpoint can be read ({damaged[0][1]}); start a new run",
            path=directory.path,
        )
    for folder, _ in damaged:
        _remove(folder)
    for draft in (directory.path / _FOLDER).glob(".*.part"):
        shutil.rmtree(draft, ignore_errors=True)
    return found


def _folders(directory: RunDirectory) -> list[Path]:
    """Of all checkpoints, the last one first."""
    parent = directory.path / _FOLDER
    found = (
        [path for path in parent.iterdir() if _STEP.fullmatch(path.name)] if parent.is_dir() else []
    )
    return sorted(found, key=_step, reverse=True)


def _step(folder: Path) -> int:
    match = _STEP.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


def _remove(folder: Path) -> None:
    """Remove a checkpoint; one that is half removed has no manifest, so nobody reads it."""
    with contextlib.suppress(OSError):
        (folder / "manifest.json").unlink()
    shutil.rmtree(folder, ignore_errors=True)
