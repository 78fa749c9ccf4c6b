"""Evaluation: published claims with their error bars, and the statistics behind them. No torch."""
