"""The folder of a run: its files, its state, and its provenance."""
