"""The vocabulary: what the layers tell each other, as frozen data.

Nothing here computes anything. A value is named by its name in the graph, which is unique there; a
node by the name of its first output, because node names may be empty or repeated.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Index: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.floating[Any]]
Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True, order=True)
class Axis:
    """Axis `position` (>= 0) of the value named `value`.

    Attributes:
        by: another axis of the value, cut into equal blocks each of which has members of its own
            along `position`; -1 for none. Index b * size + i is then index i in block b.
    """

    value: str
    position: int
    by: int = -1

    def __str__(self) -> str:
        return f"{self.value}[{self.position}{'' if self.by < 0 else f' by {self.by}'}]"


class Reason(enum.Enum):
    """Why an axis must keep its size."""

    GRAPH_INPUT = "graph input"
    GRAPH_OUTPUT = "graph output"
    DYNAMIC = "dynamic size"
    UNKNOWN_SHAPE = "unknown shape"
    NO_RULE = "operator without a rule"
    UNEXPLAINED = "not explained by the operator's rule"
    POSITIONS = "its positions have a meaning"
    SINGLE = "size 1"
    MIXED = "mixed with another axis"
    SUBGRAPH = "used inside a subgraph"
    REQUESTED = "kept on request"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Coupling:
    """`left_index[n]` of `left` and `right_index[n]` of `right` are kept or removed together.

    Both index arrays have the same shape (N,); an index may occur several times.
    """

    left: Axis
    right: Axis
    left_index: Index
    right_index: Index


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """`axis` must keep its size, because of `reason` at `node` (empty: the graph itself)."""

    axis: Axis
    reason: Reason
    node: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Ends:
    """`axis` ends at this node: its indices may go without any index of another axis going.

    Attributes:
        reads: whether the node reads the values there (Shape, for one, does not).
    """

    axis: Axis
    reads: bool = True


@dataclass(frozen=True, slots=True)
class Inner:
    """The node uses units within itself, through `axis` of one of its weights.

    There is no value at which a removed unit could be replaced: the hidden state of an LSTM is read
    again through the recurrent weight, queries and keys of a fused attention are made and read in
    one node. So the entries of the weight are replaced instead, by zeros.
    """

    axis: Axis


@dataclass(frozen=True, slots=True)
class Inexact:
    """Removing indices of `axis` changes what this node computes for those that remain.

    Attributes:
        axis: of an input or output of the node, or an atom of its choice (`Choice.atom`): then only
            removals along that atom change anything.
        node: the node whose rule yields it.
        detail: what it does over the axis.
    """

    axis: Axis
    node: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Axes that are products of atoms, of which at most one per axis can carry units.

    Attributes:
        node: the node whose rule yields it.
        sizes: the size of every atom.
        axes: each axis with its atoms, outermost first; an atom may be part of several axes.
        starts: per entry of `axes`, the index at which the product begins, where an axis holds
            several products one behind another (packed queries, keys and values); all 0 if empty.
        whole: numbers of atoms that can carry no units.

    Example: Flatten of (N, 6, 4, 4): sizes (6, 4, 4), axes x[1] = (0,), x[2] = (1,), x[3] = (2,),
    y[1] = (0, 1, 2).
    """

    node: str
    sizes: tuple[int, ...]
    axes: tuple[tuple[Axis, tuple[int, ...]], ...]
    starts: tuple[int, ...] = ()
    whole: frozenset[int] = frozenset()

    def atom(self, number: int) -> Axis:
        """The virtual axis that stands for an atom; no value can be called so."""
        return Axis(f"{self.node}\0atom", number)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Balanced:
    """Blocks that need equally many members, but not the same ones.

    Attributes:
        blocks: each axis with the number of its equal blocks; of an axis with `by`, blocks of that.
        couplings: what holds where every block has members of its own.
        stripes: what holds where index j of every block goes or stays together, the fallback.
    """

    blocks: tuple[tuple[Axis, int], ...]
    couplings: tuple[Fact, ...]
    stripes: tuple[Fact, ...]


Fact: TypeAlias = "Coupling | Frozen | Ends | Inner | Inexact | Choice | Balanced"


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """The indices of one axis that belong to the units of a group.

    Attributes:
        index: (U, k) int64; row u holds the k indices of `axis` that unit u owns, in an order that
            corresponds for all units.
        blocks: of an axis with `by`, the number of blocks.
    """

    axis: Axis
    index: Index
    blocks: int = 1


@dataclass(frozen=True, slots=True, order=True)
class Consumer:
    """A place where units end: `axis` enters `node` at input `slot` and goes no further."""

    node: str
    slot: int
    axis: Axis


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Group:
    """Units that occur on the same axes; the thing a method scores.

    Attributes:
        name: of the first parameter among its members, unique among groups.
        size: U, the number of units.
        members: one per axis that the units occupy, in graph order.
        consumers: where the units end, data inputs only (not weights).
        inner: weights through which nodes use the units within themselves; nothing can take over
            a constant or a duplicate there.
        exact: whether removing a unit that is zero at all consumers leaves the rest unchanged.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    consumers: tuple[Consumer, ...]
    inner: tuple[Consumer, ...] = ()
    exact: bool = True

    def member(self, axis: Axis) -> Member:
        """The member on `axis`; KeyError when the group has none there."""
        for member in self.members:
            if member.axis == axis:
                return member
        raise KeyError(f"group {self.name} has no member on {axis}")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Balance:
    """Blocks of units of which equally many must stay, unless none of them goes.

    Attributes:
        sizes: (B,) units per block, with those that must stay anyway.
        block: per group name, (U,) the block of each unit; -1 for a unit of none.
    """

    sizes: Index
    block: Mapping[str, Index]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Fold:
    """Unit `unit` of `group` is replaced by a constant at its consumers.

    Attributes:
        values: per consumer axis, the (k,) constants that stand there instead of the unit.
    """

    group: str
    unit: int
    values: Mapping[Axis, Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """Unit `victim` of `group` is replaced by `scale * survivor + offset` at its consumers."""

    group: str
    victim: int
    survivor: int
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Plan:
    """What to remove and what to do in exchange.

    Attributes:
        keep: (U,) bool per group name; groups that are absent keep everything. A unit that goes
            without a fold or a merge is replaced by zero.
        folds, merges: compensation for removed units; each names a unit that `keep` removes.
        exact: per group name, (U,) bool: which removals the method calls exact.
        change: expected relative change of the consumers' pre-activations, all removals taken
            together; NaN when the method does not say.
        bound: largest relative change that any one removal causes on the method's sample; NaN when
            the method does not say.
        masks: per trained parameter, which of its entries stay (bool, the parameter's shape before
            the removal); the others become zero and training leaves them so. Joined to the masks
            of earlier plans.
        reset_moments: whether the optimizer's moments start again at zero.
        rewind: whether what stays goes back to the values with which the run began.
        notes: what the report should say, one sentence each.
    """

    keep: Mapping[str, Mask]
    folds: tuple[Fold, ...] = ()
    merges: tuple[Merge, ...] = ()
    exact: Mapping[str, Mask] = field(default_factory=dict)
    change: float = math.nan
    bound: float = math.nan
    masks: Mapping[str, Mask] = field(default_factory=dict)
    reset_moments: bool = False
    rewind: bool = False
    notes: tuple[str, ...] = ()

    def removed(self) -> int:
        """How many units go."""
        return int(sum(np.count_nonzero(~mask) for mask in self.keep.values()))

    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return not (self.removed() or self.masks or self.reset_moments or self.rewind)

    def without(self, groups: frozenset[str]) -> Plan:
        """The same plan with nothing removed from `groups`."""
        return replace(
            self,
            keep={name: mask for name, mask in self.keep.items() if name not in groups},
            folds=tuple(fold for fold in self.folds if fold.group not in groups),
            merges=tuple(merge for merge in self.merges if merge.group not in groups),
            exact={name: mask for name, mask in self.exact.items() if name not in groups},
        )


class Observable(enum.Enum):
    """What a method can ask the instrumentation for: the treaty between the two."""

    RANGE = "range"  # minimum, maximum
    MEAN = "mean"  # sum
    VARIANCE = "variance"  # sum of squares
    ABSOLUTE = "absolute"  # sum of |a|
    ACTIVE = "active"  # number of non-zeros
    PAIRS = "pairs"  # sums of products of any two indices
    GATE = "gate"  # sum of a dL/da, batch by batch
    SALIENCY = "saliency"  # sums of |a dL/da| and (a dL/da)^2
    HITS = "hits"  # examples for which it was among the top k of |dL/da|

    @property
    def is_gradient(self) -> bool:
        """Whether it needs the gradient graph; the others need a forward pass only."""
        return self in (Observable.GATE, Observable.SALIENCY, Observable.HITS)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Window:
    """Statistics of one value a over a window of batches, per index of one axis of size C.

    Attributes:
        count: values seen per index (examples times positions).
        batches: batches seen.
        total, square, absolute: (C,) float64 sums of a, a^2 and |a|; None when not observed.
        active: (C,) float64 number of non-zeros; None when not observed.
        low, high: (C,) float64 smallest and largest value; None when not observed.
        pairs: (C, C) float64 sums of a_i a_j; None when not observed.
        gate: (C,) float64, the derivative of the loss by a factor at the index, g = sum of a dL/da
            over examples and positions, summed over batches; None when not observed.
        gate_square: (C,) float64 sum of g^2 over batches.
        saliency, saliency_square: (C,) float64 sums of |a dL/da| and of its square over elements.
        hits: (C,) float64, examples for which the index was among the k with the largest |dL/da|
            of its value, that being above zero; of a recurrent operator, examples times steps
            in which this holds for any gate. None when not observed.
    """

    count: int = 0
    batches: int = 0
    total: Floats | None = None
    square: Floats | None = None
    absolute: Floats | None = None
    active: Floats | None = None
    low: Floats | None = None
    high: Floats | None = None
    pairs: Floats | None = None
    gate: Floats | None = None
    gate_square: Floats | None = None
    saliency: Floats | None = None
    saliency_square: Floats | None = None
    hits: Floats | None = None


Observations: TypeAlias = Mapping[Axis, Window]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Snapshot:
    """All that training changes, at one step.

    Attributes:
        step: optimizer steps done.
        parameters: what is trained, by value name; the arrays' shapes are the graph's.
        moments: per optimizer slot ("momentum", "m", "v"), one array per parameter, of its shape.
        state: what forward passes update, by value name (running means and variances).
        masks: per parameter of which single entries are gone, which of them are left (bool, the
            parameter's shape); the others are zero and stay so.
        since: the step at which the moments last began at zero, from which optimizers count.
    """

    step: int
    parameters: Mapping[str, Array]
    moments: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    state: Mapping[str, Array] = field(default_factory=dict)
    masks: Mapping[str, Mask] = field(default_factory=dict)
    since: int = 0

    @property
    def masked(self) -> int:
        """How many numbers of its parameters are gone."""
        return sum(int(np.count_nonzero(~mask)) for mask in self.masks.values())
