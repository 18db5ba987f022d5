"""Comparisons: the statistics, the result files and the report page."""
