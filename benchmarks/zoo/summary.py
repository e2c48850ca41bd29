"""The rows of architectures.csv in short: how many run and verify, what goes, who removes more."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from rows import table

__all__ = ["summary"]

TOOLS = ("onnxprune", "onnxsim", "torch_pruning")
_MARGIN = 0.02  # of the parameters; less is a rounding of units
_NOTHING = 0.01  # of the parameters; less is called nothing

_Row = Mapping[str, str]


def summary(found: Sequence[_Row]) -> str:
    """Tables and lists in markdown."""
    skipped = [row for row in found if row.get("skipped")]
    kept = [row for row in found if not row.get("skipped")]
    parts = [f"{len(kept)} models, {len(skipped)} more could not be had here", tools(kept)]
    parts += [verified(kept), families(kept)]
    parts += [
        listed("A peer removes more", more(kept)),
        listed("onnxprune removes nothing", none(kept)),
    ]
    parts += [listed("Refused, failed, or put back", failed(kept))]
    parts += [listed("Not to be had", [[row["row"], row["skipped"][:110]] for row in skipped])]
    return "\n\n".join(part for part in parts if part)


def removed(row: _Row, tool: str) -> float:
    """Share of the parameters that `tool` removed; 0 where its file does not run."""
    share = row.get(f"{tool}_parameters_removed") or "0"
    return max(float(share), 0.0) if row.get(f"{tool}_runs") == "yes" else 0.0


def tools(rows: Sequence[_Row]) -> str:
    """One line per tool; no seconds, as the tools try different numbers of ratios, some at once."""
    lines = []
    for tool in TOOLS:
        shares = [removed(row, tool) for row in rows]
        written = [row for row in rows if row.get(f"{tool}_runs")]
        runs = [row for row in written if row[f"{tool}_runs"] == "yes"]
        lines.append(
            [
                tool,
                str(len(written)),
                str(len(runs)),
                str(sum(share >= _NOTHING for share in shares)),
                str(sum(share >= 0.5 - _MARGIN for share in shares)),
                f"{100 * statistics.mean(shares or [0]):.1f} %",
                f"{100 * statistics.mean([min(s, 0.5) for s in shares] or [0]):.1f} %",
            ]
        )
    header = ["tool", "writes a file", "that runs", "removes something", "reaches the half"]
    header += ["mean removed", "of it up to the half"]
    return table(header, lines)


def verified(rows: Sequence[_Row]) -> str:
    """How onnxprune's results compare with their references."""
    pruned = [row for row in rows if removed(row, "onnxprune") > 0]
    compared = [row for row in pruned if row.get("onnxprune_holds")]
    holds = [row for row in compared if row["onnxprune_holds"] == "True"]
    telling = [row for row in holds if float(row["onnxprune_changed"] or 0) > 1e-3]
    rolled = [row for row in pruned if row.get("onnxprune_rolled_back", "0") not in ("", "0")]
    worst = max((float(row["onnxprune_difference"]) for row in holds), default=0.0)
    return (
        f"onnxprune: of {len(pruned)} pruned models {len(holds)} equal their reference (largest "
        f"relative difference {worst:.1e}), and in {len(telling)} of them the removal changed the "
        f"output; {len(rolled)} left groups whole that failed."
    )


def families(rows: Sequence[_Row]) -> str:
    """Mean share removed by family and tool."""
    by_family: dict[str, list[_Row]] = {}
    for row in rows:
        by_family.setdefault(row["family"], []).append(row)
    lines = [
        [family, str(len(own))]
        + [f"{100 * statistics.mean(removed(row, tool) for row in own):.1f} %" for tool in TOOLS]
        for family, own in by_family.items()
    ]
    return table(["family", "models", *TOOLS], lines)


def more(rows: Sequence[_Row]) -> list[list[str]]:
    """Rows where a peer comes closer to the half, with what stops onnxprune."""
    found = []
    for row in rows:
        own = removed(row, "onnxprune")
        for tool in TOOLS[1:]:
            other = removed(row, tool)
            if min(other, 0.5) > own + _MARGIN:
                shares = f"{100 * other:.1f} % of {tool} to {100 * own:.1f} %"
                found.append([row["row"], shares, reason(row)])
    return found


def reason(row: _Row) -> str:
    """What onnxprune says about what it left."""
    if row.get("onnxprune_problem"):
        return row["onnxprune_problem"]
    parts = [f"removable {100 * float(row.get('onnxprune_removable') or 0):.1f} %"]
    if row.get("onnxprune_rolled_back", "0") not in ("", "0"):
        parts.append(f"{row['onnxprune_rolled_back']} groups put back")
    return "; ".join([*parts, (row.get("onnxprune_frozen_reasons") or "")[:150]])


def none(rows: Sequence[_Row]) -> list[list[str]]:
    """Rows without a removal."""
    return [
        [row["row"], reason(row)]
        for row in rows
        if removed(row, "onnxprune") < _NOTHING and not row.get("onnxprune_problem")
    ]


def failed(rows: Sequence[_Row]) -> list[list[str]]:
    """Rows with a problem, a file that does not run, or groups that failed verification."""
    found = []
    for row in rows:
        problem = row.get("onnxprune_problem") or ""
        if not problem and row.get("onnxprune_runs", "yes") not in ("", "yes"):
            problem = f"the result does not run: {row['onnxprune_runs']}"
        if not problem and row.get("onnxprune_holds") == "False":
            problem = f"differs from the reference by {float(row['onnxprune_difference']):.1e}"
        if not problem and row.get("onnxprune_rolled_back", "0") not in ("", "0"):
            problem = (
                f"put back: {row['onnxprune_rolled_back']}, {row['onnxprune_rolled_back_groups']}"
            )
        if problem:
            found.append([row["row"], problem])
    return found


def listed(title: str, lines: list[list[str]]) -> str:
    """A heading and one line per row; nothing when there are none."""
    if not lines:
        return ""
    return f"### {title}: {len(lines)}\n\n" + "\n".join("- " + ": ".join(line) for line in lines)
