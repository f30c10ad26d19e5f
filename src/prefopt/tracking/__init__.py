"""The metrics log, its mirror in W&B, and where a run came from."""
