"""The command `onnxprune`: its subcommands and how errors end it.

Errors that the library raises on purpose, and wrong options, become one line on stderr and an exit
code: 1 when the work failed, 2 when the request was wrong, 130 when it was interrupted and nothing
could be saved, 143 when SIGTERM ended a training. Anything else is a bug, with a traceback.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator
from typing import Any

import click

from onnxprune.errors import OnnxPruneError

from . import _render
from .env import env
from .inspect import inspect
from .prune import prune
from .train import train

__all__ = ["main"]


class _Group(click.Group):
    """A group of commands that reports errors in one line."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Read the options in front of the subcommand."""
        with _one_line(self.name or ""):
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand; exit with the code of the error it raises."""
        with _one_line(ctx.command_path):
            return super().invoke(ctx)


@contextlib.contextmanager
def _one_line(command: str) -> Iterator[None]:
    """Turn the errors we expect into a line on stderr and an exit code."""
    try:
        yield
    except OnnxPruneError as error:
        _render.error(str(error))
        raise click.exceptions.Exit(error.exit_code) from error
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else command
        _render.error(f"{error.format_message().rstrip('.')}; see {path} --help")
        raise click.exceptions.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        _render.error("interrupted")
        raise click.exceptions.Exit(130) from error


def _version() -> str:
    try:
        return importlib.metadata.version("onnxprune")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "unknown"


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), prog_name="onnxprune")
def main() -> None:
    """Make ONNX models smaller and faster while they train."""


for _command in (train, prune, inspect, env):
    main.add_command(_command)
