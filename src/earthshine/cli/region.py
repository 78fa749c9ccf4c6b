"""Text on a terminal that is rewritten as it grows: the rows at the cursor, and words wrapped to the terminal's width.

Only rows that changed are written, and those between the marks of a synchronized update, so that nothing flickers.
Callers pass text without control characters; rows may hold styles.
"""

from typing import TextIO

from earthshine.cli.terminal import PLAIN, size

_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"  # terminals without synchronized updates ignore these


def wrapped(text: str, columns: int) -> list[str]:
    """The rows that `text` takes, cut between words where a word fits into a row."""
    from rich.console import Console
    from rich.text import Text

    console = Console(width=columns)
    return [row.plain for row in Text(text).wrap(console, columns, tab_size=4, overflow="fold")]


class Region:
    """The last rows on the screen. `style`: an escape sequence for all of them."""

    def __init__(self, stream: TextIO, style: str = "") -> None:
        self.stream = stream
        self._style = style
        self._rows: list[str] = []

    @property
    def columns(self) -> int:
        """The columns to use: the last stays free, since terminals differ in what follows a character there."""
        return size(self.stream)[0] - 1

    @property
    def most_rows(self) -> int:
        """The most rows that can be rewritten: those above have left the screen."""
        return size(self.stream)[1] - 1

    def show(self, rows: list[str]) -> None:
        """Make these the region's rows."""
        old, self._rows = self._rows, list(rows)
        same = 0
        while same < min(len(old), len(rows)) and _looks_same(old[same], rows[same], same == len(rows) - 1):
            same += 1
        if same == len(old) == len(rows):
            return
        if same and same == len(rows):  # rows are taken away: the last that stays is written again
            same -= 1
        if same == len(old):
            self._write(("\n" if old else "") + self._styled("\n".join(rows[same:])))
        elif same == len(old) - 1 and same < len(rows) and rows[same].startswith(old[same]):
            self._write(self._styled("\n".join([rows[same][len(old[same]) :], *rows[same + 1 :]])))
        else:
            up = len(old) - 1 - same
            back = (f"\x1b[{up}A" if up else "") + "\r\x1b[J"
            self._write(_BEGIN + back + self._styled("\n".join(rows[same:])) + _END)

    def keep(self, n_rows: int) -> None:
        """The first rows stay as they are, and are no longer part of the region."""
        del self._rows[:n_rows]

    def finish(self, rows: list[str] | None = None) -> None:
        """End the region with these rows, by default those shown; it is then empty, below them."""
        if rows is not None:
            self.show(rows)
        if self._rows:
            self._write("\n")
        self._rows = []

    def _styled(self, text: str) -> str:
        return f"{self._style}{text}{PLAIN}" if self._style and text else text

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def _looks_same(old: str, new: str, last: bool) -> bool:
    """A space at the end of a row is not seen, and tells only in the last one where the cursor is."""
    return old == new or (not last and old.rstrip(" ") == new.rstrip(" "))


class Flow:
    """Text that is wrapped at words as it comes."""

    def __init__(self, region: Region, row: str = "") -> None:
        """`row`: what the region shows already."""
        self._region, self._row, self._columns = region, row, region.columns

    def push(self, text: str) -> None:
        if self._region.columns != self._columns:  # the terminal has rewrapped the row
            self._region.finish()
            self._row, self._columns = "", self._region.columns
        rows = wrapped(self._row + text, self._columns)
        self._region.show(rows)
        self._region.keep(len(rows) - 1)
        self._row = rows[-1]

    def finish(self) -> None:
        """End the row, where anything is in it."""
        self._region.keep(0 if self._row else 1)
        self._region.finish()
        self._row = ""
