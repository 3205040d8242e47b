"""Images ↔ latents."""
