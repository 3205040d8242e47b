"""Known tokens and a label → z for every token."""
