"""Many runs side by side: read, grouped by seed, ranked, with what is noise and what is not."""
