"""What every command needs of its process: rank, paths, terminal output, clock, and errors shown to the user."""
