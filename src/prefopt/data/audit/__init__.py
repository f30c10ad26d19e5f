"""The audit of data: what is wrong with rows, and what they teach besides what is meant. One module for each check."""
