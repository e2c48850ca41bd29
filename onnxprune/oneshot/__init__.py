"""Pruning without training: choose units by one look at the model, remove them, verify, write.

Entry: `run.prune_file`. Needs no training runtime; what can do without any runtime does.
"""
