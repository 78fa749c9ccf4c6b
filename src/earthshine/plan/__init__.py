"""What goes where within a number of bytes. Pure arithmetic on a model's sizes: no torch, no files."""

from earthshine.plan.budget import Division, Sizes, divide

__all__ = ["Division", "Sizes", "divide"]
