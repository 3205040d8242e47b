"""Numbers equal to those of the published program."""
