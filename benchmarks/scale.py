"""How analysis and removal grow with the model: seconds, and memory for weights of 4 GB.

    python benchmarks/scale.py           # runs what is missing, prints the tables

Seconds are medians of several rounds; ours and Torch-Pruning's take turns, each in its own process
that stays open, so that a busy machine hits both alike. Torch-Pruning runs in the Python that
$ONNXPRUNE_TORCH names (with torch and torch-pruning), on the same architecture; its
columns stay empty without. Half of the units of every group go. The large model is made in a
temporary folder ($TMPDIR; it takes 7 GB there) and removed afterwards.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxprune_models import builders
from rows import Row, run, table

from onnxprune.base import Plan
from onnxprune.graph.groups import Analysis, analyze
from onnxprune.graph.weights import weights
from onnxprune.methods.importance import magnitude
from onnxprune.model import constant, constants, load, save
from onnxprune.rewrite.inline import inline
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.untie import untie

ROUNDS = 7
PEER = os.environ.get("ONNXPRUNE_TORCH", "")
HERE = Path(__file__).parent
LARGE = 4 << 30  # bytes of weights
WIDTHS = (500, 4096)


def bert(layers: int = 12, width: int = 768, heads: int = 12, words: int = 30_522) -> ir.Model:
    """The graph that PyTorch exports for BERT: 109 million parameters, random weights."""
    text, names = [], {}
    rng = np.random.default_rng(0)

    def weight(name: str, *sizes: int) -> str:
        names[name] = (rng.standard_normal(sizes, np.float32) * 0.02).astype(np.float32)
        return name

    def linear(x: str, y: str, inner: int, outer: int) -> str:
        w, b = weight(f"{y}_w", inner, outer), weight(f"{y}_b", outer)
        text.append(f"{y}_m = MatMul({x}, {w})\n{y} = Add({b}, {y}_m)")
        return y

    def norm(x: str, y: str) -> str:
        scale, shift = weight(f"{y}_s", width), weight(f"{y}_t", width)
        text.append(f"{y} = LayerNormalization<axis = -1>({x}, {scale}, {shift})")
        return y

    text.append(f"e0 = Gather({weight('word', words, width)}, ids)")
    text.append(f"e1 = Gather({weight('kind', 2, width)}, types)\ne2 = Add(e0, e1)")
    x = norm("e2", "e")
    each = width // heads
    for number in range(layers):
        p = f"l{number}"
        for part, order in (("q", "0, 2, 1, 3"), ("k", "0, 2, 3, 1"), ("v", "0, 2, 1, 3")):
            linear(x, f"{p}{part}", width, width)
            text.append(
                f"{p}{part}s = Constant<value_ints = [0, 0, {heads}, {each}]>()\n"
                f"{p}{part}r = Reshape({p}{part}, {p}{part}s)\n"
                f"{p}{part}t = Transpose<perm = [{order}]>({p}{part}r)"
            )
        text.append(
            f"{p}a = MatMul({p}qt, {p}kt)\n{p}d = Constant<value_float = 8.0>()\n"
            f"{p}b = Div({p}a, {p}d)\n{p}p = Softmax<axis = -1>({p}b)\n"
            f"{p}c = MatMul({p}p, {p}vt)\n{p}ct = Transpose<perm = [0, 2, 1, 3]>({p}c)\n"
            f"{p}cs = Constant<value_ints = [0, 0, {width}]>()\n{p}cr = Reshape({p}ct, {p}cs)"
        )
        linear(f"{p}cr", f"{p}o", width, width)
        text.append(f"{p}x = Add({x}, {p}o)")
        h = linear(norm(f"{p}x", f"{p}n"), f"{p}h", width, 4 * width)
        text.append(
            f"{h}z = Constant<value_float = 1.4142135>()\n{h}d = Div({h}, {h}z)\n"
            f"{h}e = Erf({h}d)\n{h}1 = Constant<value_float = 1.0>()\n{h}p = Add({h}e, {h}1)\n"
            f"{h}m = Mul({h}, {h}p)\n{h}5 = Constant<value_float = 0.5>()\n{h}g = Mul({h}m, {h}5)"
        )
        linear(f"{h}g", f"{p}f", 4 * width, width)
        text.append(f"{p}y = Add({p}n, {p}f)")
        x = norm(f"{p}y", f"{p}e")
    text.append(f"first = Constant<value_int = 0>()\ntop = Gather<axis = 1>({x}, first)")
    text.append(f"pooled = Tanh({linear('top', 'pool', width, width)})")
    linear("pooled", "y", width, 2)
    return with_weights(
        "(int64[N, S] ids, int64[N, S] types) => (float[N, 2] y)", "\n".join(text), names
    )


def with_weights(signature: str, body: str, tensors: Mapping[str, Any]) -> ir.Model:
    """A model (opset 17) from ONNX text, its weights (arrays or tensors) given apart."""
    given = ", ".join(
        f"float[{', '.join(map(str, tensor.shape))}] {name}" for name, tensor in tensors.items()
    )
    head = '<ir_version: 8, opset_import: ["" : 17]>'
    signature = signature.replace(") =>", f", {given}) =>")
    model = ir.from_onnx_text(f"{head} g {signature} {{ {body} }}")
    graph = model.graph
    values = {value.name or "": value for value in graph.inputs}
    graph.inputs.clear()
    graph.inputs.extend(value for name, value in values.items() if name not in tensors)
    for name, tensor in tensors.items():
        is_array = isinstance(tensor, np.ndarray)
        values[name].const_value = ir.Tensor(tensor, name=name) if is_array else tensor
        graph.register_initializer(values[name])
    return model


MODELS: dict[str, Callable[[], ir.Model]] = {"resnet50": builders.resnet50, "bert_base": bert}


def halves(analysis: Analysis, model: ir.Model) -> Plan:
    """The weaker half of the units of every group goes, by magnitude."""
    held, score = weights(model, analysis), magnitude().score
    keep = {}
    for group in analysis.groups:
        found = score(group, held, {})
        if found is not None and group.size > 1:
            keep[group.name] = found >= np.sort(found)[group.size // 2]
    return Plan(keep=keep)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Wall-clock of one call, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def ours(file: Path, out: Path) -> dict[str, float]:
    """Seconds of one round, part by part."""
    times: dict[str, float] = {}
    times["read"], loaded = seconds(lambda: load(file))
    times["analysis"], (model, analysis) = seconds(lambda: _analyzed(loaded))
    times["scores"], plan = seconds(lambda: halves(analysis, model))
    times["slicing"], small = seconds(lambda: _sliced(model, analysis, plan))
    times["write"], _ = seconds(lambda: save(small, out))
    return times


def _analyzed(loaded: ir.Model) -> tuple[ir.Model, Analysis]:
    model = untie(inline(loaded))
    return model, analyze(model)


def _sliced(model: ir.Model, analysis: Analysis, plan: Plan) -> ir.Model:
    small = prune(model, analysis, plan).model
    for value in constants(small).values():
        constant(value)
    return small


class Peer:
    """Torch-Pruning in a process of its own; `round` times one removal there."""

    def __init__(self, name: str) -> None:
        self.process = subprocess.Popen(
            [PEER, str(HERE / "scale_peer.py"), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )

    def round(self) -> dict[str, float]:
        """Seconds by part; empty when it fails."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("round\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {}

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def speed(name: str) -> dict[str, Any]:
    """Medians of both tools on one architecture."""
    rounds: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    peer = Peer(name) if PEER else None
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "model.onnx", Path(folder) / "small.onnx"
        save(MODELS[name](), file)
        for number in range(ROUNDS + 1):
            mine = ours(file, out)
            other = peer.round() if peer is not None else {}
            if number:  # the first one imports and allocates
                rounds.append(mine)
                theirs.append(other)
    if peer is not None:
        peer.close()
    found = {part: statistics.median(each[part] for each in rounds) for part in rounds[0]}
    work = [each["analysis"] + each["slicing"] for each in rounds]
    found["work"] = statistics.median(work)
    pairs = [
        (other["analysis"] + other["slicing"], mine)
        for other, mine in zip(theirs, work, strict=True)
        if other
    ]
    if pairs:
        found["peer"] = statistics.median(other for other, _ in pairs)
        found["ratio"] = statistics.median(other / mine for other, mine in pairs)
    return found


def large(folder: Path) -> Path:
    """A network of 64 matrices of 64 MB each with external data, written weight by weight."""
    width, count = 4096, LARGE // (4096 * 4096 * 4)
    sizes = width * width
    body = "\n".join(
        f"m{n} = MatMul({'x' if n == 0 else f'a{n - 1}'}, w{n})\n"
        f"{'y' if n == count - 1 else f'a{n}'} = Relu(m{n})"
        for n in range(count)
    )
    rng = np.random.default_rng(0)
    with (folder / "large.data").open("wb") as stream:
        numbers = rng.standard_normal(sizes, np.float32) / 45
        for n in range(count):
            stream.write(np.roll(numbers, 1009 * n).tobytes())
    tensors = {
        f"w{n}": ir.ExternalTensor(
            "large.data",
            4 * n * sizes,
            4 * sizes,
            ir.DataType.FLOAT,
            shape=ir.Shape([width, width]),
            name=f"w{n}",
            base_dir=folder,
        )
        for n in range(count)
    }
    model = with_weights(f"(float[N, {width}] x) => (float[N, {width}] y)", body, tensors)
    ir.save(model, folder / "large.onnx")
    return folder / "large.onnx"


_PEAK = """
def peak():  # not ru_maxrss, which begins with what the process that started this one had
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
"""
_CHILD = f"""
import json, sys, time
import onnxprune, onnxprune.oneshot.run
from onnxprune.runtime.session import onnxruntime
onnxruntime()
{_PEAK}
base, start = peak(), time.perf_counter()
_, report = onnxprune.prune_file(sys.argv[1], target="params=50%", output=sys.argv[2],
                                 verify=sys.argv[3])
print(json.dumps({{"peak": peak() - base, "seconds": time.perf_counter() - start,
                  "left": report.achieved, "note": " ".join(report.notes)}}))
"""


def memory(verify: str) -> dict[str, Any]:
    """Peak memory of `prune` on 4 GB of weights, above the libraries'."""
    with tempfile.TemporaryDirectory() as name:
        file = large(Path(name))
        result = subprocess.run(
            [sys.executable, "-c", _CHILD, str(file), str(Path(name) / "small.onnx"), verify],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    found = json.loads(result.stdout)
    return {**found, "weights": LARGE, "share": found["peak"] / LARGE}


def search(width: int) -> dict[str, Any]:
    """Seconds and memory of the search for parallel units among `width`."""
    code = (
        "import sys, time\nimport numpy as np\n"
        "from onnxprune.methods.candidates import _nearest\n"
        "from onnxprune.ops.trace import Kind, Trace\n"
        f"{_PEAK}"
        "rows = np.random.default_rng(0).normal(size=(int(sys.argv[1]), 1024))\n"
        "base, times = peak(), []\n"
        "for _ in range(5):\n"
        "    start = time.perf_counter()\n"
        "    _nearest(Trace(rows=rows, kind=Kind.HOMOGENEOUS))\n"
        "    times.append(time.perf_counter() - start)\n"
        "print(sorted(times)[2], (peak() - base) / 2**20)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(width)], stdout=subprocess.PIPE, text=True, check=True
    )
    taken, peak = map(float, result.stdout.split())
    return {"seconds": taken, "mebibytes": peak}


def rows() -> Iterator[tuple[str, Row]]:
    """Every row with its name."""
    for name in MODELS:
        yield f"speed/{name}", lambda name=name: speed(name)
    for verify in ("parts", "off"):
        yield f"memory/{verify}", lambda verify=verify: memory(verify)
    for width in WIDTHS:
        yield f"search/{width}", lambda width=width: search(width)


def summary(found: list[dict[str, str]]) -> str:
    """One table per question."""
    by_name = {row["row"]: row for row in found}

    def cells(name: str, fields: list[str], form: str) -> list[str]:
        row = by_name.get(name, {})
        return [form.format(float(row[f])) if row.get(f) else "-" for f in fields]

    parts = ["read", "analysis", "scores", "slicing", "write", "work", "peer"]
    header = [*parts[:5], "analysis + slicing", "the same in Torch-Pruning", "times faster"]
    speeds = [
        [n, *cells(f"speed/{n}", parts, "{:.3f} s"), *cells(f"speed/{n}", ["ratio"], "{:.1f}")]
        for n in MODELS
    ]
    memories = [
        [
            v,
            *cells(f"memory/{v}", ["share"], "{:.2f}"),
            *cells(f"memory/{v}", ["seconds"], "{:.0f} s"),
        ]
        for v in ("parts", "off")
    ]
    searches = [
        [
            str(w),
            *cells(f"search/{w}", ["seconds"], "{:.3f} s"),
            *cells(f"search/{w}", ["mebibytes"], "{:.0f} MiB"),
        ]
        for w in WIDTHS
    ]
    return "\n\n".join(
        (
            table(["model", *header], speeds),
            table(["4 GiB of weights, verify", "peak memory / weights", "whole run"], memories),
            table(["units", "search for parallel units", "memory"], searches),
        )
    )


if __name__ == "__main__":
    print(f"{os.cpu_count()} cores")
    print(summary(run("scale", dict(rows()))))
