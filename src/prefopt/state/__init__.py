"""The state of runs and sweeps, read from their folders and from Slurm. No module here imports torch."""
