"""What a person asks, carried through devices and shown."""
