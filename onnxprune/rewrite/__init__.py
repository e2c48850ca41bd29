"""Changing the user's graph: slicing, compensation, the reference to verify against."""
