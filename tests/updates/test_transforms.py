"""Penalties, noise and masks in the update graph, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.base import Array
from onnxprune.runtime.session import Device, Runner
from onnxprune.updates.around import LEARNING_RATE, STEP
from onnxprune.updates.graph import UpdateGraph, build_update
from onnxprune.updates.rules import adam, sgd
from onnxprune.updates.transforms import masked, noisy, penalized

pytestmark = pytest.mark.ort

SHAPES = {"w": (40, 25), "b": (25,)}


def normal(seed: int, shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


P = {name: normal(number, shape) for number, (name, shape) in enumerate(SHAPES.items())}
G = {name: normal(number + 7, shape) for number, (name, shape) in enumerate(SHAPES.items())}
G["w"][::2] = 0


def stepped(graph: UpdateGraph, **scalars: float) -> dict[str, Array]:
    feeds: dict[str, Array] = {**P, LEARNING_RATE: np.float32(0.5), STEP: np.array(1, np.int64)}
    feeds |= {graph.gradients[name]: array for name, array in G.items()}
    for names in graph.moments.values():
        feeds |= {name: np.zeros_like(P[parameter]) for parameter, name in names.items()}
    feeds |= {name: np.array(number, np.float32) for name, number in scalars.items()}
    return Runner(graph.model, Device(threads=1), optimize=False).run(feeds)


def test_a_penalty_pushes_the_chosen_parameters_towards_zero() -> None:
    graph = build_update(
        sgd(), SHAPES, scalars=["penalty"], gradient_transforms=[penalized({"w"}, "penalty")]
    )
    assert graph.scalars == ("penalty",)
    found = stepped(graph, penalty=0.2)
    expected = P["w"] - 0.5 * (G["w"] + 0.2 * np.sign(P["w"]))
    np.testing.assert_allclose(found["w/next"], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found["b/next"], P["b"] - 0.5 * G["b"], rtol=1e-6, atol=1e-7)


def noise(*, live_only: bool, seed: int = 3, penalty: bool = False) -> dict[str, Array]:
    pushes = [penalized({"w"}, "penalty")] if penalty else []
    graph = build_update(
        sgd(),
        SHAPES,
        scalars=["penalty", "noise"],
        gradient_transforms=pushes,
        parameter_transforms=[noisy("noise", live_only=live_only, seed=seed)],
    )
    found = stepped(graph, penalty=1e-6, noise=0.1)
    return {name: found[f"{name}/next"] - (P[name] - 0.5 * G[name]) for name in SHAPES}


def test_noise_has_the_deviation_asked_for_and_a_stream_per_seed() -> None:
    first, again, other = (
        noise(live_only=False),
        noise(live_only=False),
        noise(live_only=False, seed=4),
    )
    for name in SHAPES:
        np.testing.assert_array_equal(first[name], again[name])
    assert first["w"].std() == pytest.approx(0.1, rel=0.1)
    assert abs(first["w"].mean()) < 0.02
    correlation = np.corrcoef(first["w"].ravel(), other["w"].ravel())[0, 1]
    assert abs(correlation) < 0.15
    assert np.count_nonzero(first["w"][::2]) > 0.99 * first["w"][::2].size


def test_noise_on_live_weights_leaves_those_without_a_gradient() -> None:
    change = noise(live_only=True)["w"]
    np.testing.assert_array_equal(change[::2], 0)
    assert change[1::2].std() == pytest.approx(0.1, rel=0.1)


def test_a_penalty_is_a_gradient_for_the_noise() -> None:
    assert np.count_nonzero(noise(live_only=True, penalty=True)["w"][::2]) > 450


def test_masked_entries_become_zero_and_get_no_moments() -> None:
    mask = np.random.default_rng(1).random(SHAPES["w"]) < 0.5
    transform = masked({"w": mask})
    graph = build_update(
        adam(), SHAPES, gradient_transforms=[transform], parameter_transforms=[transform]
    )
    found = stepped(graph)
    np.testing.assert_array_equal(found["w/next"][~mask], 0)
    np.testing.assert_array_equal(found[f"{graph.moments['m']['w']}/next"][~mask], 0)
    plain = stepped(build_update(adam(), SHAPES))
    np.testing.assert_array_equal(found["w/next"][mask], plain["w/next"][mask])
    np.testing.assert_array_equal(found["b/next"], plain["b/next"])
