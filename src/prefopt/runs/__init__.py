"""The folder of a run: what it holds, in which state it is, where it came from."""
