"""Charts as inline SVG, for the pages of reports and of comparisons."""
