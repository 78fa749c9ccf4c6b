"""What a person types and sees: commands, their output and reports of failures. The only package that prints."""

from earthshine.cli.app import main

__all__ = ["main"]
