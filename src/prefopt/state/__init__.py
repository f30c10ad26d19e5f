"""What state runs and sweeps are in, read from their folders and from Slurm. Nothing here imports torch."""
