"""Training: losses, the training copy, the gradient engine, sessions and metrics."""
