"""Reports on standard output: headings, labelled lines, tables and paragraphs, on a terminal of any width or in a pipe.

A table that is wider than the terminal wraps the notes of its last column. Where that leaves them no room, it is
printed row by row, each value with its column's name. Text is never markup, since names come from files.
"""

from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_BOUNDLESS = 1 << 16  # columns
_NARROW = 60  # columns, below which a label stands above its text
_NOTE = 24  # columns, the fewest that a note wraps in

Rows = Iterable[Sequence[str]]


class Report:
    """Prints one part after the other. `whole_lines`: none is broken, however long, for a program that reads them."""

    def __init__(self, whole_lines: bool = False) -> None:
        width = _BOUNDLESS if whole_lines else None
        self._console = Console(markup=False, emoji=False, highlight=False, width=width)

    def blank(self) -> None:
        self._print("")

    def heading(self, text: str) -> None:
        """Begins a part."""
        self._print(Text(text, style="bold"))

    def paragraph(self, text: str) -> None:
        self._print(Text(text))

    def facts(self, rows: Rows) -> None:
        """A label and its text, a line each; the text below the label where the terminal is narrow."""
        if self._console.width < _NARROW:
            for label, text in rows:
                self._stacked(label, text)
            return
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True, style="bold")
        grid.add_column()
        for label, text in rows:
            grid.add_row(Text(label), Text(text))
        self._print(grid)

    def table(self, columns: Sequence[str], rows: Rows, words: Sequence[str] = ()) -> None:
        """The first column, the last and those in `words` are words, others numbers. Without a name, the first is a
        row's heading, the last a note."""
        rows = [tuple(row) for row in rows]
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
        for index, name in enumerate(columns):
            left = index in (0, len(columns) - 1) or name in words
            table.add_column(name, justify="left" if left else "right", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        if not columns[-1] and rows:
            note = max(Text(row[-1]).cell_len for row in rows)
            table.columns[-1].no_wrap = self._console.width - (self._width(table) - note) < _NOTE
        if not table.columns[-1].no_wrap or self._width(table) <= self._console.width:
            self._print(table)
            return
        for first, *others in rows:
            self.paragraph(f"{columns[0]}: {first}" if columns[0] else first)
            named = zip(columns[1:], others, strict=True)
            self.note("; ".join(f"{name}: {value}" if name else value for name, value in named if value))

    def columns(self, rows: Rows) -> None:
        """A label and one or two values, a line each; the values below the label where that is too wide."""
        rows = [tuple(row) for row in rows]
        grid = Table.grid(padding=(0, 2, 0, 0))
        for row in rows:
            grid.add_row(*map(Text, row))
        if self._width(grid) <= self._console.width:
            self._print(grid)
            return
        for label, *values in rows:
            self._stacked(label, "; ".join(values))

    def _width(self, table: Table) -> int:
        """Columns that it takes where nothing wraps."""
        return Measurement.get(self._console, self._console.options.update(max_width=_BOUNDLESS), table).maximum

    def _stacked(self, label: str, text: str) -> None:
        """On one line where that is short, else below one another."""
        if len(label) + 2 + len(text) <= self._console.width:
            self._print(Text.assemble((label, "bold"), f"  {text}"))
            return
        self.heading(label)
        self.note(text)

    def note(self, text: str) -> None:
        """A paragraph that belongs to what is above it."""
        self._print(Padding(Text(text), (0, 0, 0, 2)))

    def _print(self, part: RenderableType) -> None:
        """Without the blanks to the terminal's edge, which a copy or a pipe would keep."""
        with self._console.capture() as capture:
            self._console.print(part)
        for line in capture.get().splitlines():
            print(line.rstrip())
