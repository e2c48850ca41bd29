"""How parameters move: optimizers as graph emitters, the update graph."""
