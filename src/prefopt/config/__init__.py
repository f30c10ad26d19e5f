"""Settings: their schema, how they are composed, checked and identified. Imports no torch."""
