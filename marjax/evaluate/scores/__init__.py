"""Scores of generated images against real ones, from what networks see."""
