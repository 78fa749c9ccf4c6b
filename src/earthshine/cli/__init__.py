"""The command line: commands, their output and error messages. The only package that prints."""

from earthshine.cli.app import main

__all__ = ["main"]
