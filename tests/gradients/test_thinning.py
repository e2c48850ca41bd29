"""Sparser back propagation through recurrences: against numpy, step by step and gate by gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import pytest
from graphs import model

from onnxprune.base import Array, Axis, Floats
from onnxprune.emit import Emitter
from onnxprune.gradients.gradient import GradientGraph, differentiate
from onnxprune.gradients.lowering import lower
from onnxprune.gradients.thinning import Recurrence
from onnxprune.gradients.top_k import gates_counted
from onnxprune.graph.groups import analyze
from onnxprune.methods.compose import Influence, TopK
from onnxprune.runtime.session import Device, Runner
from onnxprune.training.influence import preactivations

pytestmark = pytest.mark.ort

H, X, T, N = 5, 3, 3, 4  # units, inputs, steps, examples
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
NAMES = ("v", "w", "r", "b")
FORMS = {
    "LSTM": ("LSTM", "forward", ""),
    "LSTM/reverse": ("LSTM", "reverse", ""),
    "LSTM/both": ("LSTM", "bidirectional", ""),
    "GRU": ("GRU", "forward", ""),
    "GRU/both": ("GRU", "bidirectional", ""),
    "GRU/after": ("GRU", "forward", ", linear_before_reset = 1"),
    "GRU/after/reverse": ("GRU", "reverse", ", linear_before_reset = 1"),
    "RNN": ("RNN", "forward", ""),
    "RNN/both": ("RNN", "bidirectional", ""),
}


def network(form: str) -> ir.Model:
    """L = sum of h * d behind a first layer u = x v."""
    op, direction, more = FORMS[form]
    dirs, rows = 1 + (direction == "bidirectional"), H * GATES[op]
    return model(
        f"""(float[T, N, 3] x, float[T, {dirs}, N, {H}] d) => (float loss)
        <float[3, {X}] v, float[{dirs}, {rows}, {X}] w, float[{dirs}, {rows}, {H}] r,
         float[{dirs}, {2 * rows}] b> {{
            u = MatMul(x, v)
            h = {op}<hidden_size = {H}, direction = "{direction}"{more}>(u, w, r, b)
            p = Mul(h, d) loss = ReduceSum <keepdims = 0> (p) }}"""
    )


def arrays(net: ir.Model) -> dict[str, Array]:
    return {name: net.graph.initializers[name].const_value.numpy() for name in NAMES}


def sparse(form: str, top_k: TopK | None) -> GradientGraph:
    choices = {} if top_k is None else {"h": top_k}
    return differentiate(network(form), loss="loss", parameters=NAMES, top_k=choices)


def feeds(form: str, *, steps: int = T) -> dict[str, Array]:
    rng, dirs = np.random.default_rng(1), 1 + (FORMS[form][1] == "bidirectional")
    x, d = rng.normal(size=(steps, N, 3)), rng.normal(size=(steps, dirs, N, H))
    return {
        **arrays(network(form)),
        "x": x.astype(np.float32),
        "d": d.astype(np.float32),
    }


def run(graph: GradientGraph, data: dict[str, Array]) -> dict[str, Array]:
    return Runner(graph.model, Device(threads=1)).run(data)


# --- what it should be ---------------------------------------------------------------------------


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def chosen(slope: Floats, top_k: TopK) -> Floats:
    """What goes on of (N, H) slopes of one gate."""
    strength = np.abs(slope).sum(axis=0, keepdims=True) if top_k.unified else np.abs(slope)
    least = np.sort(strength, axis=1)[:, -min(top_k.k, H)][:, None]
    return np.where(strength >= least, slope, 0)


@dataclass
class Sums:
    """Slopes of one direction's parameters and inputs, and how often its units were active."""

    top_k: TopK
    w: Floats
    r: Floats
    b: Floats = field(init=False)
    u: list[Floats] = field(default_factory=list)
    hits: Floats = field(default_factory=lambda: np.zeros(H))

    def __post_init__(self) -> None:
        self.dw, self.dr = np.zeros_like(self.w), np.zeros_like(self.r)
        self.b = np.zeros((2, len(self.w)))

    def step(self, gates: list[Floats], u: Floats, h: Floats, scale: Floats | None) -> Floats:
        """The slope of h by the products; `scale` is on the last gate's way to R h."""
        kept = np.concatenate([chosen(gate, self.top_k) for gate in gates], axis=1)
        dense = np.concatenate(gates, axis=1)
        inward = np.ones_like(kept)
        if scale is not None:
            inward[:, -H:] = scale
        self.dw += kept.T @ u
        self.dr += (kept * inward).T @ h
        self.b += [dense.sum(axis=0), (dense * inward).sum(axis=0)]
        self.u.insert(0, kept @ self.w)
        self.hits += kept.reshape(N, -1, H).any(axis=1).sum(axis=0)
        return (kept * inward) @ self.r


def lstm(sums: Sums, u: Floats, b: Floats, d: Floats) -> None:
    h, c, kept = np.zeros((N, H)), np.zeros((N, H)), []
    for x in u:
        i, o, f, g = np.split(x @ sums.w.T + h @ sums.r.T + b.sum(axis=0), 4, axis=1)
        i, o, f, g = sigmoid(i), sigmoid(o), sigmoid(f), np.tanh(g)
        kept.append((x, h, c, i, o, f, g))
        c = f * c + i * g
        h = o * np.tanh(c)
    dh, dc = np.zeros((N, H)), np.zeros((N, H))
    for slope, (x, before, cell, i, o, f, g) in zip(d[::-1], kept[::-1], strict=True):
        dh, t = dh + slope, np.tanh(f * cell + i * g)
        dc = dc + dh * o * (1 - t * t)
        gates = [
            dc * g * i * (1 - i),
            dh * t * o * (1 - o),
            dc * cell * f * (1 - f),
            dc * i * (1 - g * g),
        ]
        dh, dc = sums.step(gates, x, before, None), dc * f


def gru(sums: Sums, u: Floats, b: Floats, d: Floats, *, after: bool) -> None:
    h, kept = np.zeros((N, H)), []
    wz, wr, wn = np.split(sums.w, 3)
    rz, rr, rn = np.split(sums.r, 3)
    (bz, br, bn), (cz, cr, cn) = np.split(b[0], 3), np.split(b[1], 3)
    for x in u:
        z = sigmoid(x @ wz.T + h @ rz.T + bz + cz)
        r = sigmoid(x @ wr.T + h @ rr.T + br + cr)
        q = h @ rn.T + cn
        n = np.tanh(x @ wn.T + bn + (r * q if after else (r * h) @ rn.T + cn))
        kept.append((x, h, z, r, n, q))
        h = (1 - z) * n + z * h
    dh = np.zeros((N, H))
    for slope, (x, before, z, r, n, q) in zip(d[::-1], kept[::-1], strict=True):
        dh = dh + slope
        dz, dn = dh * (before - n) * z * (1 - z), dh * (1 - z) * (1 - n * n)
        if after:
            dr = dn * q * r * (1 - r)
            dh = dh * z + sums.step([dz, dr, dn], x, before, r)
            continue
        sent = chosen(dn, sums.top_k)
        reset = sent @ rn
        dr = reset * before * r * (1 - r)
        direct = dh * z + reset * r
        own = sums.dr[2 * H :].copy()
        through = sums.step([dz, dr, dn], x, before, None) - sent @ rn
        sums.dr[2 * H :] = own + sent.T @ (r * before)
        dh = direct + through


def rnn(sums: Sums, u: Floats, b: Floats, d: Floats) -> None:
    h, kept = np.zeros((N, H)), []
    for x in u:
        before, h = h, np.tanh(x @ sums.w.T + h @ sums.r.T + b.sum(axis=0))
        kept.append((x, before, h))
    dh = np.zeros((N, H))
    for slope, (x, before, now) in zip(d[::-1], kept[::-1], strict=True):
        dh = sums.step([(dh + slope) * (1 - now * now)], x, before, None)


def expected(form: str, top_k: TopK, data: dict[str, Array]) -> tuple[dict[str, Floats], Floats]:
    """Slopes of all parameters, and hits (directions, H)."""
    op, direction, more = FORMS[form]
    x, d, v, w, r, b = (data[name].astype(np.float64) for name in ("x", "d", "v", "w", "r", "b"))
    turns = {"forward": [1], "reverse": [-1], "bidirectional": [1, -1]}[direction]
    u, du, found = x @ v, 0.0, []
    for number, turn in enumerate(turns):
        sums = Sums(top_k, w[number], r[number])
        parts = u[::turn], b[number].reshape(2, -1), d[::turn, number]
        if op == "GRU":
            gru(sums, *parts, after=bool(more))
        else:
            {"LSTM": lstm, "RNN": rnn}[op](sums, *parts)
        du = du + np.array(sums.u)[::turn]
        found.append(sums)
    return {
        "v_grad": np.einsum("tni,tnj->ij", x, du),
        "w_grad": np.array([sums.dw for sums in found]),
        "r_grad": np.array([sums.dr for sums in found]),
        "b_grad": np.array([sums.b.reshape(-1) for sums in found]),
    }, np.array([sums.hits for sums in found])


# --- slopes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("unified", [False, True], ids=["per example", "unified"])
@pytest.mark.parametrize("k", [1, 2, H])
@pytest.mark.parametrize("form", FORMS)
def test_every_gate_sends_its_largest_slopes_to_the_step_before(
    form: str, k: int, unified: bool
) -> None:
    top_k, data = TopK(k=k, unified=unified), feeds(form)
    found = run(sparse(form, top_k), data)
    for name, slope in expected(form, top_k, data)[0].items():
        np.testing.assert_allclose(found[name], slope, rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("k", [H, 4 * H])
@pytest.mark.parametrize("form", FORMS)
def test_no_fewer_than_all_units_is_the_plain_gradient(form: str, k: int) -> None:
    data = feeds(form)
    plain, found = run(sparse(form, None), data), run(sparse(form, TopK(k=k)), data)
    for name in NAMES:
        np.testing.assert_array_equal(found[f"{name}_grad"], plain[f"{name}_grad"])


@pytest.mark.parametrize(
    ("form", "silent"), [("LSTM", 2), ("GRU", 1), ("GRU/after", None), ("RNN", None)]
)
def test_rows_of_what_was_not_chosen_get_no_slope(form: str, silent: int | None) -> None:
    """One step, one choice: k rows per gate, but none of a gate that only weighs the state before.

    That is 0 here, so R gets none either. Biases get every slope there is.
    """
    found = run(sparse(form, TopK(k=2, unified=True)), feeds(form, steps=1))
    count = GATES[FORMS[form][0]]
    rows = found["w_grad"][0].any(axis=1).reshape(count, H)
    assert rows.sum(axis=1).tolist() == [0 if gate == silent else 2 for gate in range(count)]
    assert not found["r_grad"].any()
    biases = (found["b_grad"].reshape(2, count, H) != 0).all(axis=2)
    assert biases[0].tolist() == [gate != silent for gate in range(count)]


# --- counters ------------------------------------------------------------------------------------


SITE = Recurrence(op_type="", units=H, outputs=("h",))


@pytest.mark.parametrize("unified", [False, True], ids=["per example", "unified"])
@pytest.mark.parametrize("form", FORMS)
def test_a_unit_is_active_where_any_of_its_gates_is(form: str, unified: bool) -> None:
    top_k, data = TopK(k=1, unified=unified), feeds(form)
    axis = Axis("h", 3, 1 if FORMS[form][1] == "bidirectional" else -1)
    counted, collector = gates_counted(sparse(form, top_k), {axis: SITE})
    window = collector.collect(run(counted, data))[axis]
    assert window.hits is not None
    np.testing.assert_array_equal(window.hits, expected(form, top_k, data)[1].reshape(-1))
    assert window.count == T * N


def test_directions_whose_units_go_together_share_a_counter() -> None:
    top_k, data = TopK(k=1), feeds("LSTM/both")
    counted, collector = gates_counted(sparse("LSTM/both", top_k), {Axis("h", 3): SITE})
    window = collector.collect(run(counted, data))[Axis("h", 3)]
    apart = expected("LSTM/both", top_k, data)[1]
    assert window.hits is not None
    assert window.count == T * N
    assert (window.hits >= apart.max(axis=0)).all()
    assert (window.hits <= np.minimum(apart.sum(axis=0), T * N)).all()


TAGGER = """(float[T, N, 3] x) => (float[T, N, 2] y)
<float[{dirs}, {rows}, 3] w, float[{dirs}, {rows}, 5] r, float[{joined}, 2] v> {{
    {name} = {op}<hidden_size = 5{more}>(x, w, r)
    {rest} y = MatMul(q, v) }}"""
ONE = "q = Squeeze(h, axis)"
TWO = "p = Transpose<perm = [0, 2, 1, 3]>(h) q = Reshape(p, shape)"


def tagger(op: str, more: str = "", *, dirs: int = 1) -> ir.Model:
    text = TAGGER.format(
        op=op, more=more, dirs=dirs, rows=5 * GATES[op], joined=5 * dirs, name="h",
        rest=ONE if dirs == 1 else TWO,
    )  # fmt: skip
    constants = {"axis": [1]} if dirs == 1 else {"shape": [0, 0, 10]}
    return model(text, **constants)


@pytest.mark.parametrize("op", GATES)
def test_the_units_of_recurrences_are_found(op: str) -> None:
    for dirs, more, axis in ((1, "", Axis("h", 3)), (2, ', direction = "bidirectional"', None)):
        net = tagger(op, more, dirs=dirs)
        layers = preactivations(net, analyze(net))
        assert layers.products == {}
        ((found, recurrence),) = layers.recurrences.items()
        assert found == (axis or Axis("h", 3, 1))
        assert (recurrence.op_type, recurrence.units) == (op, 5)


LAST = """(float[T, N, 3] x) => (float[N, 2] y)
<float[1, 20, 3] w, float[1, 20, 5] r, float[5, 2] v> {
    all, last = LSTM<hidden_size = 5>(x, w, r)
    q = Squeeze(last, axis) y = MatMul(q, v) }"""


def summed(net: ir.Model, choices: Mapping[str, TopK]) -> GradientGraph:
    """Of L = the sum of all outputs."""
    copy = lower(net, ["y"], batch_norm="frozen").model
    e = Emitter("sum", opset=17)
    loss = e.op("ReduceSum", copy.graph.outputs[0], keepdims=0, name="loss")
    loss.type, loss.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    e.add_to(copy.graph)
    copy.graph.outputs[:] = [loss]
    return differentiate(copy, loss="loss", parameters=("w", "r", "v"), top_k=choices)


def test_recurrences_in_bodies_are_named_too() -> None:
    net = model(
        """(float[T, N, 3] x) => (float[N, 2] y)
        <float[1, 20, 3] w, float[1, 20, 5] r, float[5, 2] v> {
            f, c = Loop(twice, yes, u, u) <body = b
                (int64 i, bool go, float[1, N, 5] f0, float[1, N, 5] c0)
                => (bool more, float[1, N, 5] f1, float[1, N, 5] c1) {
                    more = Identity(go)
                    o, f1, c1 = LSTM<hidden_size = 5>(x, w, r, , , f0, c0) }>
            q = Squeeze(f, axis) y = MatMul(q, v) }""",
        twice=2,
        yes=True,
        u=np.zeros((1, 1, 5), np.float32),
        axis=[0],
    )
    influence, layers = Influence(top_k=TopK(k=1)), preactivations(net, analyze(net))
    assert layers.whole(influence, summed(net, layers.choices(influence))) == (
        "in a form without sparser back propagation, units not counted: 1 LSTM",
    )


@pytest.mark.parametrize("text", [LAST, LAST.replace("all, last", ", last")])
def test_models_that_read_the_last_state_only(text: str) -> None:
    net = model(text, axis=[0])
    influence, layers = Influence(top_k=TopK(k=1)), preactivations(net, analyze(net))
    graph = summed(net, layers.choices(influence))
    assert layers.whole(influence, graph) == ()
    _, collector = gates_counted(graph, layers.recurrences)
    ((axis, outputs),) = collector.outputs.items()
    assert axis in {m.axis for m in analyze(net).groups[0].members}
    assert set(outputs) == {"hits", "count"}


@pytest.mark.parametrize(
    ("op", "more"),
    [("LSTM", ", clip = 0.5"), ("GRU", ", clip = 0.5"), ("RNN", ', activations = ["Relu"]')],
)
def test_other_forms_stay_plain_and_are_named(op: str, more: str) -> None:
    net = tagger(op, more)
    influence, layers = Influence(top_k=TopK(k=1)), preactivations(net, analyze(net))
    choices = layers.choices(influence)
    assert choices
    plain, found = summed(net, {}), summed(net, choices)
    names = ("w", "r", "v")
    rng = np.random.default_rng(0)
    data = {n: net.graph.initializers[n].const_value.numpy() for n in names}
    data["x"] = rng.normal(size=(T, N, 3)).astype(np.float32)
    for name in names:
        slopes = [run(graph, data)[f"{name}_grad"] for graph in (plain, found)]
        np.testing.assert_array_equal(*slopes)
    assert layers.whole(influence, found) == (
        f"in a form without sparser back propagation, units not counted: 1 {op}",
    )
    assert gates_counted(found, layers.recurrences)[1].names == ()
