"""Training: state, optimizer, step, checkpoints, metrics, loop."""
