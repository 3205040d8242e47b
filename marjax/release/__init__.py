"""What can be generated from: released checkpoints and work directories."""
