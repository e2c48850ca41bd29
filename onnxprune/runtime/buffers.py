"""Device buffers that stay from one run to the next, and runs that are tied to them.

What does not change hands between steps (parameters, moments, gradients) is bound once and never
copied; only the batch goes in, and only the small outputs that are asked for come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from onnxprune.base import Array
from onnxprune.errors import InvariantError
from onnxprune.runtime.session import Device, Runner, call, onnxruntime

__all__ = ["Bound", "Chain", "Listed", "Runs", "Store"]

Buffer: TypeAlias = Any  # an onnxruntime.OrtValue, which comes without annotations


class Store:
    """Named device buffers, allocated here and owned by nobody else.

    The runtime writes in place through whatever pointer it is given, also into arrays that are
    read-only, and silently not at all into those that are not C-contiguous. So every buffer is a
    copy made here.
    """

    def __init__(self, device: Device | None = None) -> None:
        self.device = device or Device()
        self.device.providers()
        self._ort = onnxruntime()
        self._buffers: dict[str, Buffer] = {}
        self._arrays: dict[str, Array] = {}
        self._kinds: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}

    def put(self, name: str, array: Array) -> None:
        """Copy `array` into the buffer `name`, which is made on first use.

        Raises:
            InvariantError: the buffer exists with another shape or dtype; sessions may be bound
                to it, so it cannot be replaced.
        """
        known = self._buffers.get(name)
        if known is None:
            self._allocate(name, np.array(array, order="C", copy=True))
            return
        shape, dtype = self._kinds[name]
        if shape != array.shape or dtype != array.dtype:
            raise InvariantError(
                f"buffer {name!r} is {dtype}{shape}, got {array.dtype}{array.shape}; "
                "open a new session instead",
                buffer=name,
            )
        if name in self._arrays:
            self._arrays[name][...] = array
        else:
            known.update_inplace(np.array(array, order="C", copy=True))

    def _allocate(self, name: str, array: Array) -> None:
        device = self.device
        self._kinds[name] = (array.shape, array.dtype)
        self._buffers[name] = self._ort.OrtValue.ortvalue_from_numpy(
            array, device.provider, device.index
        )
        if device.provider == "cpu":
            self._arrays[name] = array

    def get(self, name: str) -> Array:
        """A copy of the buffer `name`."""
        if name in self._arrays:
            return self._arrays[name].copy()
        array: Array = self._buffers[name].numpy()
        return array

    def memory(self, name: str) -> Array:
        """The buffer `name` itself, of a store on a CPU; who writes there changes it."""
        return self._arrays[name]

    def buffer(self, name: str) -> Buffer:
        """The OrtValue to bind."""
        return self._buffers[name]

    def __contains__(self, name: str) -> bool:
        return name in self._buffers

    def close(self) -> None:
        """Forget all buffers."""
        self._buffers.clear()
        self._arrays.clear()
        self._kinds.clear()


class Runs(Protocol):
    """What runs on buffers when it is given the rest."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; returns what is in no buffer."""
        ...


class Chain:
    """Several runs, one behind the other, of which each takes what it needs of the same feeds."""

    def __init__(self, links: Sequence[Runs]) -> None:
        self._links = tuple(links)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run all of them; returns all their outputs."""
        found: dict[str, Array] = {}
        for link in self._links:
            found |= link.run(feeds)
        return found


class Listed:
    """A runner whose kernels overwrite the lists of buffers they are given, on a CPU.

    Lists cannot be bound, but what is in them is not copied: the kernels write into the store.

    Args:
        runner: the model; what it returns does not matter.
        store: owner of the buffers.
        lists: buffers per input that is a list of tensors; all other inputs are fed at every run.
    """

    def __init__(self, runner: Runner, store: Store, lists: Mapping[str, Sequence[str]]) -> None:
        self._runner = runner
        self._lists = {
            name: [store.memory(buffer) for buffer in buffers] for name, buffers in lists.items()
        }
        self._fed = tuple(name for name in runner.inputs if name not in lists)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Raises:
            DataError: an array is missing, or has another dtype or shape than the input.
            ModelError: the runtime failed while running.
        """
        given = {name: self._runner.checked(name, feeds) for name in self._fed}
        session = self._runner.session
        call(lambda: session.run(None, {**self._lists, **given}), "cannot run the model")
        return {}


class Bound:
    """A runner with buffers tied to some of its inputs and outputs.

    Args:
        runner: the model.
        store: owner of the buffers, on the same device.
        inputs: buffer per input name; all other inputs are fed anew at every run.
        outputs: buffer per output name; it is overwritten by every run. A buffer may also be an
            input's: see `updates.in_place.check_aliasing` for when that is sound.
    """

    def __init__(
        self,
        runner: Runner,
        store: Store,
        *,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
    ) -> None:
        self._runner = runner
        self._store = store  # the binding holds pointers into its memory
        self._binding = runner.session.io_binding()
        self._fed = tuple(name for name in runner.inputs if name not in inputs)
        self._free = tuple(name for name in runner.outputs if name not in outputs)
        # Outputs without a buffer are bound first, so that they come first among the results.
        for name in self._free:
            self._binding.bind_output(name, "cpu")
        for name, buffer in outputs.items():
            self._binding.bind_ortvalue_output(name, store.buffer(buffer))
        for name, buffer in inputs.items():
            self._binding.bind_ortvalue_input(name, store.buffer(buffer))

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once: reads `feeds` and the bound inputs, overwrites the bound outputs.

        Args:
            feeds: an array for every input without a buffer; its sizes may change between runs.

        Returns:
            The outputs without a buffer, as arrays of their own.

        Raises:
            DataError: an array is missing, or has another dtype or shape than the input.
            ModelError: the runtime failed while running.
        """
        for name in self._fed:
            self._binding.bind_cpu_input(name, self._runner.checked(name, feeds))
        for name in self._free:
            # Bound anew each time: the last result's buffer has the last batch's size.
            self._binding.bind_output(name, "cpu")
        session = self._runner.session
        call(lambda: session.run_with_iobinding(self._binding), "cannot run the model")
        values = self._binding.get_outputs_as_ortvaluevector()
        return {name: values[place].numpy() for place, name in enumerate(self._free)}
