"""A terminal's screen as an SVG, for the documents: runs a command in a pseudo-terminal and draws it.

    python tools/terminal_picture.py docs/pictures/plan.svg earthshine plan gleam
    python tools/terminal_picture.py --type "list all files" --type /bye docs/pictures/terminal.svg earthshine chat

Each --type is a line, sent as soon as the program waits for input: once nothing was printed for --quiet seconds, which
are more than it takes to load. Needs pyte.
"""

import argparse
import fcntl
import io
import os
import pty
import select
import struct
import subprocess
import termios
from itertools import groupby
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

_MOST_SECONDS = 300.0
_SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, monospace; font-size: {char_height}px;
  line-height: {line_height}px; }}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g></svg>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--type", action="append", default=[], metavar="LINE")
    parser.add_argument("--quiet", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    screen = run(options.command, options.type, options.columns, options.quiet)
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    options.picture.write_text(drawn(screen, " ".join(options.command)), encoding="utf-8")


def run(command: list[str], lines: list[str], columns: int, quiet: float) -> pyte.Screen:
    """The screen after the command, 200 rows high so that nothing scrolls away."""
    screen = pyte.Screen(columns, 200)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 200, columns, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns)}
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    waiting = list(lines)
    while True:
        limit = quiet if waiting else _MOST_SECONDS
        if not select.select([ours], [], [], limit)[0]:
            if not waiting:
                break
            os.write(ours, waiting.pop(0).encode() + b"\r")
            continue
        try:
            printed = os.read(ours, 65536)
        except OSError:  # the command has ended
            break
        if b"\x1b[6n" in printed:  # where is the cursor?
            os.write(ours, f"\x1b[{screen.cursor.y + 1};{screen.cursor.x + 1}R".encode())
        stream.feed(printed)
    os.close(ours)
    child.wait(timeout=10)
    return screen


def drawn(screen: pyte.Screen, title: str) -> str:
    """An SVG of the rows down to the last one that shows something."""
    rows = [row for row, text in enumerate(screen.display) if text.strip()]
    console = Console(record=True, width=screen.columns, file=io.StringIO(), legacy_windows=False)
    for row in range(max(rows, default=0) + 1):
        console.print(line(screen, row), soft_wrap=True)
    return console.export_svg(title=title, code_format=_SVG, unique_id="terminal")


def line(screen: pyte.Screen, row: int) -> Text:
    text = Text(end="")
    cells = (screen.buffer[row][column] for column in range(screen.columns))
    for look, alike in groupby(cells, lambda cell: (cell.fg, cell.bold, cell.italics, cell.reverse)):
        fg, bold, italic, reverse = look
        style = Style(color=colour(fg), bold=bold, italic=italic, reverse=reverse)
        text.append("".join(cell.data for cell in alike), style)
    text.rstrip()
    return text


def colour(name: str) -> str | None:
    if name == "default":
        return None
    return (
        f"#{name}"
        if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name)
        else name.replace("brown", "yellow")
    )


if __name__ == "__main__":
    main()
