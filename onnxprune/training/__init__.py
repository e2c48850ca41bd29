"""Training: losses, sessions, metrics, rounds and the run."""
