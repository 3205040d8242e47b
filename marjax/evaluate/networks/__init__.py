"""Networks whose features and logits images are scored by."""
