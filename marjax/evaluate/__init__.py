"""Scores and pictures of what a trained model generates."""
