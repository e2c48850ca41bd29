"""What a graph allows: shapes, couplings, groups, cost. Importing it registers the rules."""

import onnxprune.ops  # noqa: F401 (its import is what registers the rules)
