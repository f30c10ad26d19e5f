"""Preference tuning of open-weight language models, with an honest answer whether it was worth it."""

__version__ = "0.1.0"
