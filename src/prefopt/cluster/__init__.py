"""Submits runs to a cluster or this machine, and decides when to restart them. No module imports torch at its top."""
