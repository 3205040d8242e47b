"""The reveal loop: known tokens ▶ z ▶ new tokens."""
