"""Latents ↔ tokens: patches, generation order, which tokens are known."""
