"""What methods do to gradients and parameters on the way: penalties, noise, masks.

Each function returns a `Transform` for `build_update`.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.base import Mask
from onnxprune.emit import Emitter
from onnxprune.updates.around import Site, Transform

__all__ = ["masked", "noisy", "penalized"]


def penalized(names: Collection[str], strength: str) -> Transform:
    """Of gradients: g + strength * sign(p), as the loss grows by strength * sum of |p|.

    Args:
        names: the parameters p that are penalized.
        strength: the scalar that holds the weight of the penalty.
    """
    chosen = frozenset(names)

    def transform(e: Emitter, site: Site, gradient: ir.Value) -> ir.Value:
        if site.name not in chosen:
            return gradient
        push = e.op("Mul", e.op("Sign", site.parameter), site.scalars[strength])
        return e.op("Add", gradient, push)

    return transform


def noisy(deviation: str, *, live_only: bool, seed: int) -> Transform:
    """Of parameters: p + deviation * N(0, 1), for `live_only` where the gradient is not zero.

    Args:
        deviation: the scalar that holds the standard deviation.
        live_only: whether weights that had no gradient, penalty included, stay as they are.
        seed: of the stream, which every parameter has for itself.
    """

    def transform(e: Emitter, site: Site, parameter: ir.Value) -> ir.Value:
        key = np.random.SeedSequence([seed, zlib.crc32(site.name.encode())])
        number = float(key.generate_state(1)[0] >> 8)  # 24 bits: exact in the float attribute
        random = e.op("RandomNormal", shape=site.shape, seed=number, dtype=int(e.dtype))
        noise = e.op("Mul", random, site.scalars[deviation])
        if live_only:
            live = e.op("Cast", e.op("Cast", site.gradient, to=ir.DataType.BOOL), to=e.dtype)
            noise = e.op("Mul", noise, live)
        return e.op("Add", parameter, noise)

    return transform


def masked(masks: Mapping[str, Mask]) -> Transform:
    """Of gradients and parameters: zero where the mask of the parameter, of its shape, is not set.

    Applied to both, what is masked stays zero whatever the moments hold.
    """

    def transform(e: Emitter, site: Site, value: ir.Value) -> ir.Value:
        mask = masks.get(site.name)
        if mask is None or mask.all():
            return value
        return e.op("Where", e.constant(mask), value, e.scalar(0.0))

    return transform
