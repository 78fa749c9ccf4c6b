"""What a person types and sees: the commands, their output, and how failures are told. The only package that prints."""

from earthshine.cli.app import main

__all__ = ["main"]
