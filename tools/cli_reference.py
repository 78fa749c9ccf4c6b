"""Writes docs/cli.md: the help of every command of `earthshine`, as the installed package prints it.

    python tools/cli_reference.py

Lines are 100 characters wide, without colours, whatever the terminal; hidden commands are left out.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.main import get_command

from earthshine.cli.app import app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
_WIDTH = 100
_HEAD = """# Command line

The help of every command, written by `python tools/cli_reference.py`. Exit codes: 0, 1 for a failure, 2 for wrong use,
130 when interrupted.
"""


def reference() -> str:
    """The whole page."""
    sections = [f"## {name}\n\n```\n{text}\n```\n" for name, text in helps(get_command(app), "earthshine")]
    return "\n".join([_HEAD, *sections])


def helps(
    command: typer.core.TyperCommand, name: str, parent: typer.Context | None = None
) -> Iterator[tuple[str, str]]:
    """The command's full name and help, then those of its visible subcommands."""
    context = typer.Context(command, parent=parent, info_name=name, terminal_width=_WIDTH, max_content_width=_WIDTH)
    context.color = False
    yield context.command_path, "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    for part, sub in getattr(command, "commands", {}).items():
        if not sub.hidden:
            yield from helps(sub, part, context)


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    PAGE.write_text(reference(), encoding="utf-8")
