"""What ends a run before it wastes time, overwrites a file, or hands out a broken model."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxprune.base import Snapshot
from onnxprune.errors import ConfigError, NonFiniteLossError
from onnxprune.model import external_files
from onnxprune.training.target import Target

__all__ = ["check_finite", "check_target", "output_path"]


def check_target(goal: Target | None, before: Mapping[str, int]) -> None:
    """The target must be something that the model has.

    Args:
        goal: of the run.
        before: parameters and MACs of the model given.

    Raises:
        ConfigError: it is not.
    """
    if goal is not None and not before[goal.kind]:
        raise ConfigError(f"--target {goal}: the model has no {goal.kind} that could be counted")


def check_finite(snapshot: Snapshot, last_finite: float) -> None:
    """Never hand out a model whose last step broke it.

    Raises:
        NonFiniteLossError: a parameter is NaN or infinite.
    """
    for name, array in snapshot.parameters.items():
        if not np.isfinite(array).all():
            raise NonFiniteLossError(
                f"step {snapshot.step}: parameter {name} became NaN or infinite; lower the "
                "learning rate or clip gradients",
                step=snapshot.step,
                loss=math.nan,
                last_finite=last_finite,
            )


def output_path(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    protected: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Where the pruned model goes, checked before hours of training and not after.

    Args:
        model: the file that is pruned; never overwritten, not through a link either, and neither
            are the files that hold its weights, by the result or by what is written beside it.
        output: where to write; None for <stem>.pruned.onnx in the current folder.
        protected: other files that must survive, such as the data.

    Raises:
        ConfigError: the file is one of those to be kept, is a folder, or lies in a folder that
            does not exist or cannot be written.
    """
    source = Path(model)
    target = Path(f"{source.stem}.pruned.onnx") if output is None else Path(output)
    if target.is_dir():
        raise ConfigError(f"-o {target}: is a folder; add a file name", output=target)
    if not target.parent.is_dir():
        raise ConfigError(
            f"-o {target}: folder {target.parent} does not exist; create it first", output=target
        )
    if not os.access(target.parent, os.W_OK):
        raise ConfigError(
            f"-o {target}: folder {target.parent} cannot be written; choose another", output=target
        )
    _check_overwrites((target,), [Path(path) for path in protected], target)
    beside = (Path(f"{target}.data"), Path(f"{target}.recipe.json"))
    _check_overwrites((target, *beside), [source, *sorted(external_files(source))], target)
    return target


def _check_overwrites(written: Sequence[Path], read: Sequence[Path], target: Path) -> None:
    for file in read:
        if any(_is_same_file(path, file) for path in written):
            raise ConfigError(
                f"-o {target}: would overwrite {file}, which is read; choose another name",
                output=target,
            )


def _is_same_file(target: Path, file: Path) -> bool:
    """Whether both paths lead to one file, through symbolic and hard links too."""
    if target.resolve() == file.resolve():
        return True
    return target.exists() and file.exists() and target.samefile(file)
