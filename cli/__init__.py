"""The command line of onnxprune, installed as `onnxprune_cli`; entry: `main.main`.

Each command is a thin layer over a function of the library: it reads options, calls, and shows the
result. Result tables go to stdout, progress and errors to stderr; only `_render` writes.
"""
