"""Gradients of Scan, Loop and If: their bodies are differentiated, and run backwards.

A pass through a loop is a function (states, inputs) -> (states, outputs). Its slopes run through a
Scan in the opposite direction: the state is the slope of the states, and the sum of the slopes of
what the body reads from outside. Every pass is computed again from the states it began with, which
the forward loop keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients.hidden import Call, zeros
from onnxprune.gradients.slots import attribute
from onnxprune.model import trainable_dtype
from onnxprune.ops.registry import gradient

__all__: list[str] = []


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Passes:
    """A loop that ran.

    Attributes:
        body: of one pass; its inputs are `constant`, then the states, then the slices.
        states: per state, all values it had at the beginning of a pass, along axis 0; None for one
            that no pass reads, which may even change its rank.
        slices: what the passes took slices of, with axis and direction.
        first: of the body's outputs, the number of the first state.
    """

    body: ir.Graph
    states: Sequence[ir.Value | None]
    slices: Sequence[tuple[ir.Value, int, int]]
    first: int


@gradient("Scan")
def scan(e: Emitter, call: Call) -> Sequence[ir.Value | None]:
    """Keep the states; then backwards through the slices."""
    node, body = call.node, call.node.attributes["body"].as_graph()
    taken = node.attributes["num_scan_inputs"].as_int()
    count = len(body.inputs) - taken
    states = _keep(node, list(body.inputs[:count]), body)
    axes = attribute(node, "scan_input_axes", [0] * taken)
    turned = attribute(node, "scan_input_directions", [0] * taken)
    slices = list(zip(node.inputs[count:], axes, turned, strict=True))
    passes = _Passes(body=body, states=states, slices=slices, first=0)  # type: ignore[arg-type]
    kept = sum(state is not None for state in states)
    made = len(body.outputs) - count - kept
    outs = _slice_slopes(
        call.slopes[count : count + made],
        attribute(node, "scan_output_axes", [0] * made),
        attribute(node, "scan_output_directions", [0] * made),
    )
    _extend(node, "scan_output_axes", kept)
    _extend(node, "scan_output_directions", kept)
    return _backwards(e, call, passes, outs, call.slopes[:count], 0, count)


def _extend(node: ir.Node, name: str, count: int) -> None:
    if name in node.attributes:
        values = [*node.attributes[name].value, *[0] * count]
        node.attributes[name] = ir.AttrInt64s(name, values)


@gradient("Loop")
def loop(e: Emitter, call: Call) -> Sequence[ir.Value | None]:
    """As a Scan whose slices are the numbers of the passes."""
    node, body = call.node, call.node.attributes["body"].as_graph()
    count = len(body.inputs) - 2
    made = len(body.outputs) - 1 - count
    outs = _slice_slopes(call.slopes[count : count + made], [0] * made, [0] * made)
    kept = _keep(node, list(body.inputs), body)
    passes = _Passes(body=body, states=kept, slices=[], first=1)
    return _backwards(e, call, passes, outs, call.slopes[:count], 2, count)


def _keep(node: ir.Node, values: Sequence[ir.Value], body: ir.Graph) -> list[ir.Value | None]:
    """Let the loop put out what `values`, inputs of its body, were in every pass.

    None for those that no pass reads, but the first, which tells how many passes there were.
    """
    kept: list[ir.Value | None] = [None] * len(values)
    name = next(value.name for value in node.outputs if value.name)
    for number, value in enumerate(values):
        if number and not _read(value):
            continue
        copy = ir.node("Identity", [value])
        copy.outputs[0].name = f"{value.name}/kept"
        copy.outputs[0].type = value.type
        body.append(copy)
        body.outputs.append(copy.outputs[0])
        node.resize_outputs(len(node.outputs) + 1)
        output = node.outputs[-1]
        output.name = f"{name}/kept_{number}"
        output.type = value.type
        kept[number] = output
    return kept


def _read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


_Slope = tuple[int, ir.Value, int, int]


def _slice_slopes(
    slopes: Sequence[ir.Value | None], axes: Sequence[int], directions: Sequence[int]
) -> list[_Slope]:
    """(position, slopes, axis, direction) of the sliced outputs that have slopes."""
    known = enumerate(zip(slopes, axes, directions, strict=True))
    return [(number, s, axis, turn) for number, (s, axis, turn) in known if s is not None]


def _backwards(
    e: Emitter,
    call: Call,
    passes: _Passes,
    outs: Sequence[_Slope],
    ends: Sequence[ir.Value | None],
    before: int,
    count: int,
) -> list[ir.Value | None]:
    """The slopes of the initial states, the slices and the captures, by one Scan.

    Args:
        e: where to write.
        call: of the loop.
        passes: what happened.
        outs: slopes of the sliced outputs.
        ends: slopes of the final states.
        before: how many inputs of the node and of its body stand in front of the states.
        count: how many states there are.
    """
    body, first = passes.body, passes.first
    inner = list(body.inputs)
    real = [n for n in range(count) if _real(call.node.inputs[before + n])]
    moved = [n for n in real if _read(inner[before + n])]
    unread = [n for n in real if n not in moved and ends[n] is not None]
    cuts = [n for n in range(before + count, len(inner)) if call.wanted[n]]
    total = len(call.node.inputs)
    outside = [n for n, need in enumerate(call.wanted[total:]) if need]
    sources = [inner[before + n] for n in moved]
    sources += [call.captures[n] for n in outside]
    sources += [inner[n] for n in cuts]
    sinks = [first + n for n in [*moved, *unread]] + [first + count + number for number, *_ in outs]
    step = call.differentiate(body, sources, sinks, f"{e.prefix}/pass")
    known = [*(state is not None for state in passes.states), *(True for _ in passes.slices)]
    kept = [value for value, there in zip(step.inputs, known, strict=False) if there]
    arrived = list(step.inputs[len(inner) :])
    ended = {arrived[len(moved) + k]: body.outputs[first + n] for k, n in enumerate(unread)}
    _forget(step, len(moved), ended, e.prefix)
    carried = moved + unread
    sums = _accumulate(step, len(carried), [call.captures[n] for n in outside], e.prefix)
    slices = [(value, 0, 1) for value in passes.states if value is not None]
    slices += [(value, axis, 1 - turn) for value, axis, turn in passes.slices]
    slices += [(slope, axis, 1 - turn) for _, slope, axis, turn in outs]
    step.inputs.clear()
    step.inputs.extend([*arrived[: len(carried)], *sums, *kept, *arrived[len(carried) :]])
    starts = [ends[n] or zeros(e, call.node.inputs[before + n]) for n in carried]
    starts += [zeros(e, call.captures[n]) for n in outside]
    results = e.ops(
        "Scan",
        *starts,
        *(value for value, _, _ in slices),
        outputs=[f"{e.prefix}/scan_{n}" for n in range(len(step.outputs))],
        body=step,
        num_scan_inputs=len(slices),
        scan_input_axes=[axis for _, axis, _ in slices],
        scan_input_directions=[turn for _, _, turn in slices],
        **_out_directions([passes.slices[n - before - count] for n in cuts]),
    )
    answer: list[ir.Value | None] = [None] * len(call.wanted)
    places = [*(before + n for n in moved), *(None for _ in unread)]
    places += [*(total + n for n in outside), *cuts]
    for place, value in zip(places, results, strict=True):
        if place is not None:
            answer[place] = value
    return answer


def _out_directions(slices: Sequence[tuple[ir.Value, int, int]]) -> dict[str, Any]:
    if not slices:
        return {}
    return {
        "scan_output_axes": [axis for _, axis, _ in slices],
        "scan_output_directions": [1 - turn for _, _, turn in slices],
    }


def _real(value: ir.Value | None) -> bool:
    return value is not None and (value.dtype is None or trainable_dtype(value.dtype))


def _forget(step: ir.Graph, first: int, ended: Mapping[ir.Value, ir.Value], prefix: str) -> None:
    """The slopes of states that no pass reads end in the pass that wrote them.

    Args:
        step: the body that is written, from its output `first` on.
        first: see there.
        ended: state by its slope.
        prefix: of names.
    """
    for number, (slope, state) in enumerate(ended.items()):
        nothing = ir.node("Sub", [slope, slope])
        nothing.outputs[0].name = f"{prefix}/nothing_{number}"
        nothing.outputs[0].type = slope.type
        nothing.outputs[0].shape = state.shape  # which the runtime asks for
        step.append(nothing)
        step.outputs.insert(first + number, nothing.outputs[0])


def _accumulate(
    step: ir.Graph, first: int, captures: Sequence[ir.Value], prefix: str
) -> list[ir.Value]:
    """Add each pass's slopes of the captures to a state; the new inputs of `step`."""
    sums = []
    for number, value in enumerate(captures):
        so_far = ir.Value(name=f"{prefix}/sum_{number}", type=value.type)
        node = ir.node("Add", [so_far, step.outputs[first + number]])
        node.outputs[0].name = f"{prefix}/sum_{number}/next"
        node.outputs[0].type = value.type
        step.append(node)
        step.outputs[first + number] = node.outputs[0]
        sums.append(so_far)
    return sums


@gradient("If")
def branches(e: Emitter, call: Call) -> Sequence[ir.Value | None]:
    """The slopes of what the taken branch reads; zeros for what only the other one does."""
    sinks = [n for n, slope in enumerate(call.slopes) if slope is not None]
    outside = [n for n, need in enumerate(call.wanted[1:]) if need]
    sources = [call.captures[n] for n in outside]
    made: dict[str, Any] = {}
    for name in ("then_branch", "else_branch"):
        body = call.node.attributes[name].as_graph()
        step = call.differentiate(body, sources, sinks, f"{e.prefix}/{name}")
        for value, sink in zip(list(step.inputs), sinks, strict=True):
            slope = call.slopes[sink]
            assert slope is not None
            value.replace_all_uses_with(slope, replace_graph_outputs=True)
        step.inputs.clear()
        made[name] = step
    names = [f"{e.prefix}/if_{n}" for n in range(len(sources))]
    results = e.ops("If", call.node.inputs[0], outputs=names, **made)
    answer: list[ir.Value | None] = [None] * len(call.wanted)
    for place, value in zip(outside, results, strict=True):
        answer[1 + place] = value
    return answer
