"""What a run says: events while it goes on, a report when it is over.

Events are frozen data, appended to `records.jsonl` in a `RunDirectory` as they happen; `Report`
compares the model before and after, `Inspection` lists what could be removed and what could not.
`render` turns either into text. Nothing here prints, trains or looks at a model.
"""

from onnxprune.reports.quantities import human, human_bytes
from onnxprune.reports.records import (
    Evaluated,
    Event,
    Finished,
    Progress,
    Pruned,
    Resumed,
    RunDirectory,
    Started,
    read_records,
)
from onnxprune.reports.report import FrozenRow, GroupRow, Inspection, Report, Size
from onnxprune.reports.table import render

__all__ = [
    "Evaluated",
    "Event",
    "Finished",
    "FrozenRow",
    "GroupRow",
    "Inspection",
    "Progress",
    "Pruned",
    "Report",
    "Resumed",
    "RunDirectory",
    "Size",
    "Started",
    "human",
    "human_bytes",
    "read_records",
    "render",
]
