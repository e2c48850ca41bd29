"""Running models: sessions, device buffers, probing, verification, latency."""
