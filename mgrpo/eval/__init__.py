"""Measuring motion: metrics in two families, evaluation with fixed noise, statistics and tables."""
