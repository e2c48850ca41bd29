"""Write docs/operators.md: what is known about every operator, read off the registry.

Run `python docs/make_operators.py` after changing a rule; a test compares the committed page.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from onnxprune.gradients.differentiable import means
from onnxprune.ops.registry import (
    ABSORBS,
    CONNECTS,
    COUPLES,
    MACS,
    NEWEST,
    PARAMETERS,
    RESIZES,
    TRACES,
)

COLUMNS = (
    "operator", "opsets", "couples", "weights", "resizes", "macs", "absorbs", "connects", "traces",
    "gradient",
)  # fmt: skip
PAGE = Path(__file__).with_name("operators.md")
HEAD = """# Operators

Written by `python docs/make_operators.py` from the rules in `onnxprune/ops`. An operator that is
not here is frozen: the axes it touches keep their sizes, and `onnxprune inspect` names it as the
reason.

* **opsets**: versions of the operator's domain the rule is for.
* **couples**: what belongs together; the whole of it stands in the rule's docstring.
* **weights**: has inputs that are trained.
* **resizes**: attributes or shape inputs follow a removal.
* **macs**: counted in the cost.
* **absorbs**: its weights can take over constants and duplicates of removed inputs.
* **connects**: single connections of its weights can be scored and go (method `nnrelief`).
* **traces**: copies of units can be recognized through it.
* **gradient**: how training gets through it: by the *engine*; *rewritten* in operators the engine
  can differentiate, in the forms that need it; by a rule of our *own*; *flat* (its slope is 0).
  Nothing: parameters in front of it are not trained.

Frozen on purpose, because nothing static is known of what they take or give:

* sequences and optional values (SequenceAt, SequenceInsert, SplitToSequence, ConcatFromSequence,
  SequenceMap, Optional and their like): the tensors inside may differ in size;
* text and files (StringSplit, TfIdfVectorizer, ImageDecoder and their like): no parameters before
  them;
* trees, support vectors and linear models of ai.onnx.ml: their weights are attributes, numbered by
  feature;
* operators of com.microsoft that only one kind of device runs and no exporter writes: layouts of a
  device (NhwcConv, QOrdered and NCHWc operators), packed or paged attention, mixtures of experts,
  weights in blocks of 4 bits along both axes (MatMulBnb4, GatherBlockQuantized), QAttention, loops
  that generate text (BeamSearch, GreedySearch).
"""


def page() -> str:
    """The page as text."""
    lines = [HEAD]
    for domain in sorted({domain for domain, *_ in COUPLES.rows()}):
        lines.append(f"## {domain or 'ai.onnx'}\n")
        lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        lines.extend(_rows(domain))
        lines.append("")
    return "\n".join(lines)


def _rows(wanted: str) -> Iterator[str]:
    facets = (PARAMETERS, RESIZES, MACS, ABSORBS, CONNECTS, TRACES)
    known = [{(row[0], row[1]) for row in facet.rows()} for facet in facets]
    for domain, op_type, low, high, rule in COUPLES.rows():
        if domain == wanted:
            first = (inspect.getdoc(rule) or "").partition("\n")[0].replace("|", "\\|")
            marks = ["x" if (domain, op_type) in table else "" for table in known]
            marks.append(means(domain, op_type).value)
            yield f"| {op_type} | {_opsets(low, high)} | {first} | {' | '.join(marks)} |"


def _opsets(low: int, high: int) -> str:
    if high == NEWEST:
        return "all" if low == 1 else f"{low} and newer"
    return f"up to {high}" if low == 1 else f"{low} to {high}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
