"""Run a program in a process of its own, within a time and a memory limit."""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).parent / "programs"
_PATH = [str(PROGRAMS.parents[2]), os.environ.get("PYTHONPATH", "")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a program ended.

    Attributes:
        lines: the JSON objects that it printed.
        problem: empty when it succeeded, else one line.
    """

    lines: tuple[dict[str, Any], ...]
    problem: str

    @property
    def found(self) -> dict[str, Any]:
        """All lines in one."""
        return {key: value for line in self.lines for key, value in line.items()}


def run(
    python: Path | str,
    program: str,
    arguments: Sequence[object],
    *,
    seconds: float,
    gigabytes: float,
) -> Ended:
    """Run `program` of the folder `programs` under the interpreter `python`.

    Args:
        python: the interpreter of the environment the program needs.
        program: name of a file.
        arguments: of its command line.
        seconds: after which it is ended, with all that it started.
        gigabytes: of private memory that it may ask for.
    """
    limit = int(gigabytes * 2**30)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    child = subprocess.Popen(
        [str(python), "-W", "ignore", str(PROGRAMS / program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=limited,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, _PATH))},
    )
    late = False
    try:
        out, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(child.pid, signal.SIGKILL)
        out, err = child.communicate()
    lines = tuple(line for text in out.splitlines() if (line := _object(text)) is not None)
    problem = f"more than {seconds:.0f} s" if late else _problem(child.returncode, err)
    return Ended(lines=lines, problem=problem)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _problem(code: int, err: str) -> str:
    """The last line of a traceback, or the signal."""
    if code == 0:
        return ""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    said = [line.strip() for line in err.splitlines() if line.strip()]
    named = [line for line in said if line.split(":")[0].split(".")[-1].endswith(_ENDINGS)]
    return " ".join(((named or said or [f"exit status {code}"])[-1]).split())[:200]


_ENDINGS = ("Error", "Exception", "Interrupt", "Fail", "InvalidGraph", "NotImplemented", "Exit")


@functools.cache
def available(python: Path | str, *modules: str) -> bool:
    """Whether an interpreter is there and has the modules."""
    there = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"
    try:
        done = subprocess.run([str(python), "-c", there, *modules], check=False, timeout=60)
    except OSError:
        return False
    return done.returncode == 0


HERE = sys.executable
