"""The command line: flags → dataclasses → calls, and no logic of its own."""
