"""Kill training twenty times at random moments, resume it, and compare with the undisturbed run.

    python benchmarks/kills.py            # runs what is missing, prints the table

Each row starts the same training (the shipped LeNet on the digits, Dropout put in front of its last
layer, half of the parameters to go) in a process of its own, kills that with SIGKILL at a random
moment, resumes the run in another process, and compares the bytes of the pruned file and all
records but for the durations. POSIX only.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnxprune_models import path
from rows import Row, run, table

from onnxprune.model import load, save
from onnxprune.reports import Evaluated, Finished, Progress, Pruned, RunDirectory, read_records

KILLS = 20
TRAIN = "import sys; from onnxprune_cli.main import main; main(sys.argv[1:])"
OPTIONS = (
    *("--data", "digits", "--epochs", "4", "--target", "params=50%", "--threads", "1"),
    *("--prune-interval", "25", "--checkpoint-every", "15steps", "--check", "off", "--quiet"),
)
TIMED = ("seconds", "training_seconds", "latency_ms", "output", "run_directory", "config")


def with_dropout(file: Path) -> None:
    """The shipped LeNet with Dropout between the last activation and the last layer."""
    model = load(path("digits_lenet"))
    last = [node for node in model.graph if node.op_type in ("Gemm", "MatMul")][-1]
    ratio = ir.Value(
        name="ratio", const_value=ir.tensor(0.25, dtype=ir.DataType.FLOAT, name="ratio")
    )
    model.graph.register_initializer(ratio)
    drop = ir.node("Dropout", [last.inputs[0], ratio])
    drop.outputs[0].name = "dropped"
    model.graph.insert_before(last, drop)
    last.replace_input_with(0, drop.outputs[0])
    save(model, file)


def started(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """A training in a process of its own."""
    line = [sys.executable, "-c", TRAIN, "train", *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL)


def finished(*arguments: str | Path) -> None:
    """Train to the end."""
    if started(*arguments).wait():
        raise SystemExit(f"the training failed: {arguments}")


def timeless(value: Any) -> Any:
    """Records without what differs from run to run."""
    if isinstance(value, dict):
        return {name: timeless(entry) for name, entry in value.items() if name not in TIMED}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def records(folder: Path) -> Any:
    """All lines of a run."""
    lines = (folder / "records.jsonl").read_text().splitlines()
    return timeless([json.loads(line) for line in lines])


def phase(folder: Path) -> str:
    """What the killed run was last heard to do."""
    if list((folder / "checkpoints").glob(".*.part")):
        return "writing a checkpoint"
    last = read_records(folder)[-1]
    kinds = {Progress: "steps", Evaluated: "after an evaluation", Pruned: "after a removal"}
    return kinds.get(type(last), "before the first step")  # type: ignore[call-overload, no-any-return]


def killed(number: int, place: Path) -> dict[str, Any]:
    """One kill, its resumption, and whether anything came out differently."""
    folder, output = place / f"run{number}", place / f"out{number}.onnx"
    process = started(place / "model.onnx", *OPTIONS, "-o", output, "--run-dir", folder)
    chance = random.Random(number)
    share, delay = chance.uniform(0.05, 0.95), chance.uniform(0.0, 0.3)
    lines = (place / "whole" / "records.jsonl").read_bytes().splitlines(keepends=True)
    length = share * sum(map(len, lines[:-1]))  # the last one says that the run is over
    while process.poll() is None and RunDirectory(folder).length < length:
        time.sleep(0.002)
    time.sleep(delay)  # anywhere between two records
    process.send_signal(signal.SIGKILL)
    process.wait()
    ended = isinstance(read_records(folder)[-1], Finished)
    found = {
        "share": round(share, 2),
        "phase": "ended before" if ended else phase(folder),
        "epochs": sum(isinstance(event, Evaluated) for event in read_records(folder)),
        "checkpoints": len(list((folder / "checkpoints").glob("step-*"))),
    }
    if not ended:
        finished("--resume", folder, "--quiet")
    same = output.read_bytes() == (place / "whole.onnx").read_bytes()
    return {
        **found,
        "file_equal": same,
        "records_equal": records(folder) == records(place / "whole"),
    }


def main() -> None:
    """Run what is missing, and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)

        def row(number: int) -> Mapping[str, Any]:
            if not (place / "whole.onnx").exists():
                with_dropout(place / "model.onnx")
                arguments = ("-o", place / "whole.onnx", "--run-dir", place / "whole")
                finished(place / "model.onnx", *OPTIONS, *arguments)
            return killed(number, place)

        rows: dict[str, Row] = {f"kill {n}": (lambda n=n: row(n)) for n in range(1, KILLS + 1)}  # type: ignore[misc]
        found = run("kills", rows)
    shown = ("row", "share", "phase", "epochs", "file_equal", "records_equal")
    head = ("kill", "of the run", "while", "epochs done", "file equal", "records equal")
    print(table(head, [[line[name] for name in shown] for line in found]))


if __name__ == "__main__":
    if os.name == "nt":
        raise SystemExit("Windows has no SIGKILL")
    main()
