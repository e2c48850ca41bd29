"""Which models train: is the gradient built, does a step run, does the loss go down?

    python benchmarks/trainable.py [--models FOLDER ...] [--only TEXT] [--again]

Takes the models that come with the project, untrained ones of its builders, those in the `light`
folder of the onnx package (whose weights are all equal: they get random ones), the files in
$ONNXPRUNE_DATA and those in the given folders. Each is trained for 20 steps of Adam on one batch,
fixed and made up, in a process of its own with limits on time and memory: on its own loss where the
graph tells it, on the squared distance from random numbers otherwise. The learning rate is the
first of 1e-3, 1e-4 ... 1e-7 at which the loss goes down: untrained networks whose normalization was
folded into the weights answer with millions. A row per model goes to results/trainable.csv. Rows
that are there are not run again; with --again, those that failed are.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from rows import RESULTS, SHARED, Row, forget, run, table
from zoo.packages import packages

from onnxprune.base import Array, Snapshot
from onnxprune.data.synthetic import synthetic
from onnxprune.errors import NonFiniteLossError, OnnxPruneError
from onnxprune.gradients.gradient import GradientGraph, differentiate
from onnxprune.gradients.lowering import evaluation_copy, lower
from onnxprune.graph.groups import analyze
from onnxprune.graph.parameters import trained
from onnxprune.model import (
    constant,
    constants,
    list_initializers,
    model_input,
    save,
    trainable_dtype,
)
from onnxprune.runtime.session import Runner
from onnxprune.training.loss_nodes import attach
from onnxprune.training.losses import LOSS, TARGET, Objective, resolve
from onnxprune.training.problem import read_model
from onnxprune.training.session import Session
from onnxprune.updates.graph import build_update
from onnxprune.updates.rules import adam

STEPS, EXAMPLES = 20, 4
RATES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
MINUTES, GIGABYTES = 5, 8


def sources(folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """(name, file) of every model."""
    import onnxprune_models

    light = Path(onnx.__file__).parent / "backend/test/data/light"
    places = {
        "shipped": Path(onnxprune_models.__file__).parent,
        "built": built(),
        "light": light,
        "corpus": SHARED / "corpus",
        "models": SHARED / "models",
        **{folder.name: folder for folder in folders},
    }
    for kind, place in places.items():
        for file in sorted(place.rglob("*.onnx")):
            yield f"{kind}/{file.relative_to(place).with_suffix('').as_posix()}", file


def built() -> Path:
    """A folder with one model per builder."""
    from onnxprune_models import builders

    folder = Path(tempfile.gettempdir()) / "onnxprune-built"
    folder.mkdir(exist_ok=True)
    makers: dict[str, Callable[[], ir.Model]] = {
        **{
            name: getattr(builders, name)
            for name in ("densenet", "lenet5", "resnet", "resnet50", "vgg")
        },
        **{
            f"mlp_{kind}": functools.partial(builders.mlp, (16, 32, 4), activation=kind)
            for kind in ("relu", "leaky_relu", "elu", "softplus", "tanh", "sigmoid")
        },
    }
    for name, make in makers.items():
        file = folder / f"{name}.onnx"
        if not file.exists():
            save(make(), file)
    return folder


def in_a_process(file: Path) -> Mapping[str, Any]:
    """The row of one model."""
    command = [sys.executable, __file__, "--one", str(file)]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60 * MINUTES, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"more than {MINUTES} minutes"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"error": f"exit {done.returncode}: {last}"[:300]}
    return {**json.loads(lines[-1]), "seconds": round(time.perf_counter() - started, 1)}


def one(file: Path) -> dict[str, Any]:
    """Train the model in `file`, in this process."""
    size = GIGABYTES << 30
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    try:
        return _trained(file)
    except (OnnxPruneError, RuntimeError) as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}


def _trained(file: Path) -> dict[str, Any]:
    model = read_model(file)
    fill(model)
    names = trained(model, analyze(model)).parameters
    if not names:
        return {"parameters": 0, "error": "no float parameters"}
    feeds = inputs(model, file)
    objective, target = posed(model, feeds)
    copy = lower(
        model,
        list(objective.values),
        batch_norm="train" if EXAMPLES > 1 else "frozen",
        dropout=False,
    )
    copy = attach(copy, [objective])
    known = [name for name in names if name in copy.model.graph.initializers]
    if not known:
        return {"parameters": len(names), "error": "no parameter leads to the output"}
    graph = differentiate(copy.model, loss=LOSS, parameters=known, state=copy.state)
    for rate in RATES:
        try:
            losses, seconds = stepped(graph, copy.model, {**feeds, TARGET: target}, rate)
        except NonFiniteLossError:
            if rate == RATES[-1]:
                raise
            continue
        if losses[-1] < losses[0]:
            break
    return {
        "loss": objective.kind,
        "rate": rate,
        "parameters": len(names),
        "trained": len(graph.parameters),
        "first": f"{losses[0]:.5g}",
        "last": f"{losses[-1]:.5g}",
        "down": losses[-1] < losses[0],
        "step_ms": round(1e3 * seconds, 1),
        "untrained": _untrained(names, known, graph),
    }


def _untrained(names: Sequence[str], known: Sequence[str], graph: GradientGraph) -> str:
    reasons = {name: "does not lead to the output" for name in names if name not in known}
    reasons |= graph.reasons
    counts: dict[str, list[str]] = {}
    for name, why in reasons.items():
        counts.setdefault(why, []).append(name)
    return "; ".join(f"{len(held)} ({held[0]} ...): {why}" for why, held in counts.items())[:400]


def stepped(
    graph: GradientGraph, lowered: ir.Model, feeds: Mapping[str, Array], rate: float
) -> tuple[list[float], float]:
    """Losses of all steps, and the seconds of the median one."""
    held = {name: constant(value) for name, value in constants(lowered).items()}

    def own(name: str) -> Array:
        array = held[name]
        assert array is not None
        return np.array(array, dtype=np.float32)

    parameters = {name: own(name) for name in graph.parameters}
    state = {name: own(name) for name in graph.state}
    update = build_update(
        adam(),
        {name: array.shape for name, array in parameters.items()},
        state={name: array.shape for name, array in state.items()},
    )
    snapshot = Snapshot(step=0, parameters=parameters, state=state)
    needed = {value.name for value in model_input(graph.model)}
    batch = {name: array for name, array in feeds.items() if name in needed}
    losses, times = [], []
    with Session(plain=graph, update=update, snapshot=snapshot) as session:
        for _ in range(STEPS + 1):
            started = time.perf_counter()
            losses.append(session.train_step(batch, learning_rate=rate).loss)
            times.append(time.perf_counter() - started)
    return losses, float(np.median(times))


# --- what it is trained on -----------------------------------------------------------------------


def fill(model: ir.Model) -> None:
    """Random numbers for weights that the file writes as one number repeated."""
    rng = np.random.default_rng(0)
    for node in list(model.graph):
        shape = constant(node.inputs[0]) if node.op_type == "ConstantOfShape" else None
        value = node.outputs[0]
        if shape is None or not trainable_dtype(value.dtype or ir.DataType.FLOAT) or shape.size < 1:
            continue
        tensor = node.attributes.get("value")
        if tensor is not None and tensor.value.dtype != ir.DataType.FLOAT:
            continue
        scale = 1 / np.sqrt(max(1, np.prod(shape[1:]))) if shape.size > 1 else 0.1
        array = np.abs(rng.normal(size=shape)) if shape.size == 1 else rng.normal(size=shape)
        tensor = ir.Tensor((scale * array).astype(np.float32), name=value.name)
        made = ir.Value(name=value.name, const_value=tensor, type=ir.TensorType(tensor.dtype))
        made.shape = ir.Shape(array.shape)
        value.replace_all_uses_with(made)
        model.graph.remove(node, safe=True)
        model.graph.register_initializer(made)
    list_initializers(model)


def inputs(model: ir.Model, file: Path) -> dict[str, Array]:
    """A made-up batch; where open sizes are not free, of those the zoo knows."""
    sizes = {entry.stem: entry.sizes for entry in packages()}.get(file.stem, {})
    return synthetic(model, np.random.default_rng(0), examples=EXAMPLES, input_shapes=sizes)


def posed(model: ir.Model, feeds: Mapping[str, Array]) -> tuple[Objective, Array]:
    """The loss, on the first float output without infinities and NaN, and random targets."""
    rng = np.random.default_rng(1)
    runner = Runner(model, optimize=False)
    values = runner.run({name: feeds[name] for name in runner.inputs})
    floats = [name for name, array in values.items() if _is_float(array)]
    floats.sort(key=lambda name: not np.isfinite(values[name]).all())
    if not floats:
        raise OnnxPruneError("no float output")
    name = floats[0]
    y = np.asarray(values[name])
    real = rng.normal(size=y.shape).astype(np.float32)
    try:
        objective = resolve(model, name, "auto", real)
        prediction = evaluation_copy(model, [objective.prediction])
        other = Runner(prediction, optimize=False)
        y = other.run({name: feeds[name] for name in other.inputs})[objective.prediction]
    except OnnxPruneError:
        objective = resolve(model, name, "mse", real)
    if objective.kind == "cross-entropy":
        axis = objective.class_axis if y.ndim > 1 else 0
        shape = y.shape[:axis] + y.shape[axis + 1 :]
        if y.ndim > 2 and all(size == 1 for size in y.shape[2:]):
            shape = y.shape[:1]
        return objective, rng.integers(0, y.shape[axis], size=shape)
    if objective.kind == "binary-cross-entropy":
        return objective, rng.integers(0, 2, size=y.shape).astype(np.float32)
    return objective, rng.normal(size=y.shape).astype(np.float32)


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size > 0


def failed(row: Mapping[str, str]) -> bool:
    """Whether the model did not train."""
    return row.get("down") != "True"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    parser.add_argument("--only", default="")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--one", type=Path)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(one(given.one)))
        return
    rows: dict[str, Row] = {
        name: (lambda file=file: in_a_process(file))
        for name, file in sources(given.models)
        if given.only in name
    }
    if given.again:
        forget("trainable", lambda row: failed(row) and given.only in row["row"])
    done = run("trainable", rows)
    held = [row for row in done if row.get("parameters") != "0"]
    good = [row for row in held if not failed(row)]
    bad = [row for row in held if failed(row)]
    lines = [
        [row["row"], row.get("error") or f"loss {row['first']} to {row['last']}"] for row in bad
    ]
    print(table(["model", "what went wrong"], lines))
    whole = sum(row["parameters"] == row["trained"] for row in good)
    print(
        f"\n{len(good)} of {len(held)} models with float parameters train, {whole} of them in all "
        f"parameters; {len(done) - len(held)} have none ({RESULTS / 'trainable.csv'})"
    )


if __name__ == "__main__":
    main()
