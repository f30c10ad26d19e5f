"""Training: TRL's trainers with exact evaluation, durable checkpoints and a readable console."""
