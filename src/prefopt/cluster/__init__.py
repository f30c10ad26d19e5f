"""Submitting runs to a cluster, and what happens around a run there. Nothing here imports torch at the top."""
