"""The same numbers on any mesh."""
