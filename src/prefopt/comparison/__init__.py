"""Compares many runs: reads them, groups them by seed, ranks them, and tells differences from noise."""
