"""Ranks and checkpoints."""
