"""Exact measurement of a tuned model against its base."""
