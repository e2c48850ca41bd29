"""What models are instrumented with: statistics of activations, as nodes of derived graphs."""
