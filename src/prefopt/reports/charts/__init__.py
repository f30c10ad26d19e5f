"""Charts as inline SVG for every page: of a run's report and of a comparison."""
