"""One file of tests for each protocol, run over every implementation."""
