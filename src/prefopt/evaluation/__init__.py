"""Measures a tuned model against its base."""
