"""Evaluation: published claims with their error bars, saved results compared, and the statistics. No torch."""
