"""A process: its rank, its paths, its terminal, its log, its clock, and the errors that it tells people."""
