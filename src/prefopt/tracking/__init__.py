"""The metrics log, its mirror in Weights & Biases (W&B), and the run that a run starts from."""
