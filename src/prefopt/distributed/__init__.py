"""The ranks of a run: their communication, DeepSpeed, stop requests and checkpoints."""
