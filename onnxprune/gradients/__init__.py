"""Graphs of gradients: lowering to what has one, the engine, and faster forms of what it makes."""
