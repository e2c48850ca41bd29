"""Sparser back propagation and what it counts, in runs of recurrent models."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from graphs import model, view
from runs import Result, Train, digits

from onnxprune.reports import Pruned

pytestmark = pytest.mark.ort

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def reader(op: str, more: str = "", *, dirs: int = 1) -> ir.Model:
    """Reads a digit row by row; what it knows after the last one says which it is."""
    rows = 16 * GATES[op]
    return model(
        f"""(float[N, 8, 8] x) => (float[N, 10] y)
        <float[{dirs}, {rows}, 8] w, float[{dirs}, {rows}, 16] r, float[{dirs}, {2 * rows}] b,
         float[{16 * dirs}, 10] v> {{
            t = Transpose<perm = [1, 0, 2]>(x)
            , last = {op}<hidden_size = 16{more}>(t, w, r, b)
            p = Transpose<perm = [1, 0, 2]>(last) f = Reshape(p, shape) y = MatMul(f, v) }}""",
        shape=[0, 16 * dirs],
    )


def trained(train: Train, source: ir.Model, method: str, **options: object) -> Result:
    x, y = digits(300)
    return train(
        source,
        (x.reshape(len(x), 8, 8), y),
        method=method,
        method_options=options,
        epochs=3,
        learning_rate=0.02,
        prune_interval=8,
    )


@pytest.mark.parametrize(("op", "unified"), [("LSTM", False), ("GRU", True), ("RNN", False)])
def test_mesimp_removes_hidden_units_that_are_rarely_active(
    train: Train, op: str, unified: bool
) -> None:
    result = trained(train, reader(op), "mesimp", k=3, rate=0.5, unified=unified)
    events = [event for event in result.events if isinstance(event, Pruned)]
    assert events
    assert not any(event.rolled_back for event in events)
    left = view(result.file, op).node.attributes["hidden_size"].value
    assert 0 < left < 16
    assert not any("sparser" in note for note in result.report.notes)


def test_mesimp_removes_units_of_both_directions(train: Train) -> None:
    source = reader("LSTM", ', direction = "bidirectional"', dirs=2)
    result = trained(train, source, "mesimp", k=3, rate=0.5)
    assert view(result.file, "LSTM").node.attributes["hidden_size"].value < 16


def test_meprop_trains_and_removes_nothing(train: Train) -> None:
    result = trained(train, reader("GRU"), "meprop", k=6, unified=False)
    assert view(result.file, "GRU").node.attributes["hidden_size"].value == 16
    before, after = result.report.before.metrics["loss"], result.report.after.metrics["loss"]
    assert after < 0.8 * before


def test_a_run_says_which_recurrences_send_everything_back(train: Train) -> None:
    result = trained(train, reader("LSTM", ", clip = 2.0"), "mesimp", k=3, rate=0.5)
    note = "in a form without sparser back propagation, units not counted: 1 LSTM"
    assert result.report.notes.count(note) == 1
    assert view(result.file, "LSTM").node.attributes["hidden_size"].value == 16
