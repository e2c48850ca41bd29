"""What the tests of gradients share."""

from setups import model_from, shared_model, slope_error, training

__all__ = ["model_from", "shared_model", "slope_error", "training"]
