"""Many runs of one configuration: grids, lists and searches."""
