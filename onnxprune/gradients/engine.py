"""onnxruntime-training's GradientGraphBuilder: the one module that calls it.

It fails with a message where an operator has no gradient. Silent paths, which only the engine knows
to carry none (into running statistics, say), make it fail with the name of a parameter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnxprune.errors import TrainingError
from onnxprune.model import parse, serialize
from onnxprune.runtime.session import engine_failures, first_line, onnxruntime

__all__ = ["BOX", "DOMAIN", "SUFFIX", "attempt", "define"]

SUFFIX = "_grad"  # the engine's name for the gradient of a value
DOMAIN, BOX = "org.pytorch.aten", "ATen"  # an operator whose gradient can be defined by name
_MISSING = re.compile(r"builder has not been registered: (\w+) for node (\S*)")


def attempt(
    prepared: Callable[[Sequence[str]], ir.Model],
    loss: str,
    parameters: Sequence[str],
) -> tuple[ir.Model | None, tuple[str, ...]]:
    """The engine's graph, and the parameters that have a gradient in it.

    Paths that only the engine knows to carry none (into running statistics, say) make it fail with
    the name of one parameter, which is then left out.
    """
    trained = tuple(parameters)
    while trained:
        model = prepared(trained)
        try:
            return _build(model, loss, trained), trained
        except TrainingError as error:
            silent = _silent(error, trained)
            if silent is None:
                raise
            trained = tuple(name for name in trained if name != silent)
    return None, ()


def _silent(error: TrainingError, parameters: Sequence[str]) -> str | None:
    """The parameter whose gradient the engine did not find, if that is what `error` says."""
    _, found, name = str(error.__cause__).partition("failed to find NodeArg by name: ")
    name = name.strip().removesuffix(SUFFIX)
    return name if found and name in parameters else None


def _build(model: ir.Model, loss: str, parameters: Sequence[str]) -> ir.Model:
    """Run the engine."""
    from onnxruntime.capi import _pybind_state as engine

    options = onnxruntime().SessionOptions()  # silent: else every graph transformer logs a line
    options.log_severity_level = 4
    names = set(parameters)
    with serialize(model) as source:
        if not isinstance(source, bytes):
            raise TrainingError(
                "the constants of the training copy exceed 2 GB; train more of the parameters"
            )
        try:
            forward = engine.get_optimized_model(source, names, options)
            builder = engine.GradientGraphBuilder(forward, {loss}, names, loss, options)
            builder.build()
            return parse(builder.get_model())
        except engine_failures() as error:
            raise _refused(error, loss) from error


def _refused(error: BaseException, loss: str) -> TrainingError:
    """The engine's failure in our words where it is the usual one, else its first line."""
    missing = _MISSING.search(str(error))
    if missing is None:
        return TrainingError(
            f"the gradient of {loss} cannot be built: {first_line(error)}; freeze what leads "
            "through the operator at fault with --freeze",
            loss=loss,
        )
    operator, node = missing.groups()
    return TrainingError(
        f"{operator} (node {node}): the engine has no gradient for it; freeze the parameters "
        "before it with --freeze, or replace it in the model",
        loss=loss,
        operator=operator,
        node=node,
    )


def define(operator: str, backward: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """The gradient of the black box `operator` is the black box `backward`."""
    from onnxruntime.capi import _pybind_state as engine

    name = engine.GradientNodeAttributeDefinition()
    name.name, name.value_json, name.dtype, name.is_tensor = (
        "operator",
        f'"{backward}"',
        "string",
        False,
    )
    node = engine.GradientNodeDefinition()
    node.op_type, node.domain = BOX, DOMAIN
    node.inputs, node.outputs, node.attributes = list(inputs), list(outputs), [name]
    engine.register_gradient_definition(f"{DOMAIN}::{BOX}::{operator}::", [node])
