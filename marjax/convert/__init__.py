"""Published checkpoints → parameters, by table."""
