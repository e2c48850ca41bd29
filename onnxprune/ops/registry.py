"""What is known about operators: one table, filled by the family modules through decorators.

A facet is a function under a key `(domain, op_type)` with an inclusive range of opsets. All facets
of an operator stand in its family's file; a third party may add its own from its own module.

    @couples     which indices of which axes belong together         mandatory for support
    @resizes     attributes and shape inputs that a removal changes
    @macs        multiply-accumulates of one node
    @absorbs     how the weights take over what a removed input unit contributed
    @connects    where single connections lie, and what each contributes
    @traces      what a unit's value is as a function of its incoming parameters
    @parameters  input slots that hold what is trained
    @mimics      standard operators with the same sizes, where shape inference knows no better
    @opens       what follows the batch, where the file holds the size of one (`ops.opening`)
    @dequantizes what gives the real numbers behind a weight of integers
    @zero_points input slots that say which number stands for nothing at a data input
    @lowers      an equal composition of operators that can be differentiated
    @gradient    slopes of the inputs, where no composition is as good
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Axis, Coupling, Ends, Fact, Frozen, Index, Reason
from onnxprune.emit import Emitter
from onnxprune.errors import InvariantError
from onnxprune.model import constant, is_constant, node_key

__all__ = [
    "ABSORBS",
    "CONNECTS",
    "COUPLES",
    "DEQUANTIZES",
    "GRADIENTS",
    "LOWERS",
    "MACS",
    "MIMICS",
    "PARAMETERS",
    "RESIZES",
    "TRACES",
    "ZERO_POINTS",
    "Lowering",
    "Role",
    "Shapes",
    "Sizes",
    "View",
    "absorbs",
    "connects",
    "couples",
    "dequantizes",
    "gradient",
    "lowers",
    "macs",
    "mimics",
    "parameters",
    "resizes",
    "traces",
    "zero_points",
]

Sizes = tuple["int | None", ...]
F = TypeVar("F", bound=Callable[..., Any])
NEWEST = 10_000
_STANDARD = ("", "ai.onnx")


class Shapes(dict[str, Sizes]):
    """Sizes per value name, and which open ones are the same whenever the model runs.

    Args:
        sizes: None for a size that is not static.
        trials: per value name the sizes at two different choices of the open ones.
    """

    def __init__(
        self,
        sizes: Mapping[str, Sizes],
        trials: Mapping[str, tuple[tuple[int | None, int | None], ...]],
    ) -> None:
        super().__init__(sizes)
        self.trials = trials

    def agree(self, left: Axis, right: Axis) -> bool:
        """Whether both sizes are the same, open or not."""
        pairs = [self.trials[axis.value][axis.position] for axis in (left, right)]
        return pairs[0] == pairs[1] and None not in pairs[0]


@dataclass(frozen=True, slots=True)
class View:
    """A node as a rule sees it: its slots, the static shapes around it, its constants.

    Attributes:
        shapes: sizes per value name, None for a size that is not static; absent = unknown rank.
        opset: version of the node's operator set.
        known: arrays of values that are computed but cannot change (slice bounds, paddings).
    """

    node: ir.Node
    shapes: Mapping[str, Sizes]
    opset: int
    known: Mapping[str, Array] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What names the node."""
        return node_key(self.node)

    def input(self, slot: int) -> ir.Value | None:
        """The value at input `slot`; None when it is left out."""
        value = self.node.inputs[slot] if slot < len(self.node.inputs) else None
        return None if value is None or not value.name else value

    def output(self, slot: int = 0) -> ir.Value:
        """The value at output `slot`."""
        return self.node.outputs[slot]

    def shape(self, value: ir.Value | None) -> Sizes:
        """Sizes of `value`; the engine calls a rule only when all ranks are known."""
        if value is None or value.name is None:
            raise InvariantError(f"{self.key}: the rule asked for the shape of an absent value")
        return self.shapes[value.name]

    def constant(self, slot: int) -> Array | None:
        """The array at input `slot`; None when it is absent or can change."""
        value = self.input(slot)
        array = constant(value)
        return self.known.get(value.name or "") if array is None and value is not None else array

    def is_constant(self, slot: int) -> bool:
        """Whether `constant` knows an array; nothing is read."""
        value = self.input(slot)
        return value is not None and (is_constant(value) or value.name in self.known)

    def attribute(self, name: str, default: Any = None) -> Any:
        """The attribute's value or `default`."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    def axis(self, value: ir.Value | None, position: int) -> Axis:
        """`position` may be negative."""
        sizes = self.shape(value)
        assert value is not None
        assert value.name is not None
        return Axis(value.name, position % len(sizes) if sizes else 0)

    # Facts that most rules are made of.

    def equal(self, left: Axis, right: Axis) -> Iterator[Fact]:
        """Both axes hold the same indices in the same order; nothing where a size is dynamic."""
        a, b = self.size(left), self.size(right)
        if a is not None and a == b:
            yield Coupling(left=left, right=right, left_index=arange(a), right_index=arange(a))
            return
        for axis, size in ((left, a), (right, b)):
            if size is not None:
                yield Frozen(
                    axis=axis, reason=Reason.DYNAMIC, node=self.key, detail="meets another size"
                )

    def size(self, axis: Axis) -> int | None:
        """Static size of `axis`; None when dynamic."""
        return self.shapes[axis.value][axis.position]

    def agree(self, left: Axis, right: Axis) -> bool:
        """Whether both axes are known to have the same size, which may be open."""
        a, b = self.size(left), self.size(right)
        if a is not None or b is not None:
            return a == b
        return isinstance(self.shapes, Shapes) and self.shapes.agree(left, right)

    def ends(self, value: ir.Value | None, *positions: int) -> Iterator[Fact]:
        """The axes at `positions` of `value` are summed over or only read here."""
        for position in positions:
            yield Ends(self.axis(value, position))

    def fixed(
        self, value: ir.Value | None, *positions: int, reason: Reason = Reason.POSITIONS
    ) -> Iterator[Fact]:
        """The axes at `positions` of `value` must keep their sizes."""
        for position in positions:
            yield Frozen(axis=self.axis(value, position), reason=reason, node=self.key)


def arange(size: int) -> Index:
    """0 .. size - 1."""
    return np.arange(size, dtype=np.int64)


class Role:
    """What a parameter slot holds."""

    WEIGHT = "weight"  # contracted with the data: the node is a weighted operator
    AFFINE = "affine"  # bias, shift or slope: trained behind a weighted operator only
    SCALE = "scale"  # of a normalization; likewise
    TABLE = "table"  # embedding

    DEPENDENT = (AFFINE, SCALE)  # what alone makes no operator a weighted one


_Condition: TypeAlias = Callable[[ir.Node], bool]


class Facet(Generic[F]):
    """One table of functions by operator; registering the same opsets twice is an error."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._rows: dict[tuple[str, str], list[tuple[int, int, F, _Condition]]] = {}

    def register(
        self,
        *op_types: str,
        domain: str = "",
        since: int = 1,
        until: int = NEWEST,
        when: _Condition = lambda _: True,
    ) -> Callable[[F], F]:
        """Decorator: the function handles `op_types` of opsets `since` to `until` inclusive.

        `when` leaves nodes out that the function cannot handle.
        """

        def add(function: F) -> F:
            for op_type in op_types:
                rows = self._rows.setdefault((domain, op_type), [])
                for low, high, other, _ in rows:
                    if since <= high and low <= until:
                        raise InvariantError(
                            f"@{self.name}({op_type!r}): {function.__module__}.{function.__name__} "
                            f"and {other.__module__}.{other.__name__} both claim opset {since}"
                        )
                rows.append((since, until, function, when))
            return function

        return add

    def find(self, node: ir.Node, opset: int) -> F | None:
        """The function for `node` under `opset` of its domain."""
        domain = "" if node.domain in _STANDARD else node.domain
        for low, high, function, when in self._rows.get((domain, node.op_type), ()):
            if low <= opset <= high and when(node):
                return function
        return None

    def rows(self) -> Iterator[tuple[str, str, int, int, F]]:
        """Every entry: domain, operator, first and last opset, function."""
        for (domain, op_type), rows in sorted(self._rows.items()):
            for low, high, function, _ in rows:
                yield domain, op_type, low, high, function


COUPLES: Facet[Callable[[View], Iterable[Fact]]] = Facet("couples")
RESIZES: Facet[Callable[..., None]] = Facet("resizes")
MACS: Facet[Callable[[View], int]] = Facet("macs")
ABSORBS: Facet[Callable[..., Any]] = Facet("absorbs")
CONNECTS: Facet[Callable[..., Any]] = Facet("connects")
TRACES: Facet[Callable[..., Any]] = Facet("traces")
PARAMETERS: Facet[Callable[[], Mapping[int, str]]] = Facet("parameters")

ZERO_POINTS: Facet[Callable[[], Mapping[int, int]]] = Facet("zero_points")

DEQUANTIZES: Facet[Callable[[View, int], Callable[[], Array] | None]] = Facet("dequantizes")
MIMICS: Facet[Callable[[Emitter, ir.Node], Sequence[ir.Value | None]]] = Facet("mimics")

Lowering: TypeAlias = Callable[[Emitter, ir.Node], "ir.Value | Sequence[ir.Value | None] | None"]
"""Writes an equal composition; returns what replaces the node's first output or all of them (an
input, where nothing is left to compute), or None to leave the node alone (the engine handles it, or
sizes it would need are unknown)."""

LOWERS: Facet[Lowering] = Facet("lowers")
GRADIENTS: Facet[Callable[..., Sequence[ir.Value | None]]] = Facet("gradient")
couples = COUPLES.register
resizes = RESIZES.register
macs = MACS.register
absorbs = ABSORBS.register
connects = CONNECTS.register
traces = TRACES.register
mimics = MIMICS.register
dequantizes = DEQUANTIZES.register
lowers = LOWERS.register
gradient = GRADIENTS.register


def parameters(*op_types: str, slots: Mapping[int, str], domain: str = "") -> None:
    """Declare which input slots of `op_types` hold parameters, and their roles."""
    PARAMETERS.register(*op_types, domain=domain)(lambda: slots)


def zero_points(*op_types: str, slots: Mapping[int, int], domain: str = "") -> None:
    """Declare per data slot of `op_types` the slot of its zero point, which stands for nothing."""
    ZERO_POINTS.register(*op_types, domain=domain)(lambda: slots)
