"""Evaluation results as report.json, report.md, report.html and a summary in the terminal."""
