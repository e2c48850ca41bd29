"""How removals without training are verified: by whole models, stretch by stretch, or not at all.

`verification` decides before anything is removed, and sees the model run. What was decided is part
of every record, and of the report where it is less than a comparison of whole models.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.errors import ModelError, RuntimeUnavailableError
from onnxprune.model import PROTOBUF_LIMIT, nbytes
from onnxprune.oneshot.config import PruneConfig
from onnxprune.oneshot.examples import Examples
from onnxprune.runtime.parts import PART, run_in_parts
from onnxprune.runtime.session import Device, Runner, check_runtime, lowered_note

__all__ = ["Verification", "verification"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Where and how.

    Attributes:
        runtime: where models run; None when there is no runtime.
        how: "whole", "parts" or "off".
        notes: one sentence each.
    """

    runtime: Device | None
    how: str
    notes: tuple[str, ...] = ()


def verification(model: ir.Model, config: PruneConfig, examples: Examples) -> Verification:
    """What `config.verify` asks for, after the model was seen to run that way.

    Raises:
        RuntimeUnavailableError: the task needs a runtime, and there is none.
        ModelError: the model does not run.
    """
    try:
        check_runtime(training=False)
    except RuntimeUnavailableError as error:
        if config.lossless:
            raise RuntimeUnavailableError(f"--lossless must run the model: {error}") from error
        return Verification(runtime=None, how="off", notes=(f"not verified: {error}",))
    device = Device(provider=config.provider, threads=config.threads)
    how = config.verify
    if how == "off":
        return Verification(runtime=device, how=how, notes=("not verified, as asked for",))
    if how == "auto":
        large = nbytes(model) > PROTOBUF_LIMIT and not config.lossless
        how = "parts" if large else "whole"
    try:
        notes = _tried(model, device, examples, how)
    except ModelError as error:
        hint = "" if examples.data is not None else "; give --data, or --input-shape NAME:SIZES"
        kind = "the data" if examples.data is not None else "made-up inputs"
        raise ModelError(f"the model does not run on {kind}: {error}{hint}") from error
    return Verification(runtime=device, how=how, notes=notes)


def _tried(model: ir.Model, device: Device, examples: Examples, how: str) -> tuple[str, ...]:
    """Run the model once; what there is to say about it."""
    if how == "parts":
        run_in_parts(model, examples.first, device=device)
        size = f"{PART >> 20} MiB of weights"
        return (f"verified in parts of {size}, on one batch; latency and metrics not measured",)
    runner = Runner(model, device=device, optimize=False)
    runner.run(examples.first)
    return (lowered_note(model),) if runner.lowered else ()
