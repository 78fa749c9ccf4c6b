"""Markdown as it comes: a finished block is rendered, and the running one is shown as it is written.

A block is a paragraph, a heading, one item of a list, a table or a line of code, so that little is rewritten at a time.
A block that is taller than the screen stays as it was written, and so does one whose terminal changed its width. HTML,
images and definitions of links are shown as text, line breaks are kept, and a block whose rendering lacks a letter or a
digit is shown as it was written, so that no word of a reply is lost.
"""

import re
from collections import Counter
from typing import Any, TextIO

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Heading, Markdown
from rich.syntax import Syntax
from rich.theme import Theme

from earthshine.cli.region import Flow, Region, wrapped
from earthshine.cli.terminal import DIM, PLAIN

_FENCE = re.compile(r"( {0,3})(`{3,}(?=[^`]*$)|~{3,})[ \t]*([\w+#.-]*)")
_HEADING = re.compile(r" {0,3}#{1,6}(\s|$)")
_RULE = re.compile(r" {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$")
_ITEM = re.compile(r" {0,3}(?:[-*+]|[0-9]{1,9}[.)])(?: {1,4}(?=\S)|$)")
_FIRST_ITEM = re.compile(r" {0,3}(?:[-*+]|1[.)]) {1,4}\S")  # what may begin a list below a line of text
_UNDERLINE = re.compile(r" {0,3}(?:=+|-+)[ \t]*$")  # of a heading
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_MAY_BEGIN = tuple("-*+#>`~_=0123456789")  # another block, as the first character of a line
_HIGHLIGHTED_LINES, _HIGHLIGHTED_CHARACTERS = 30, 2000  # the most that is highlighted again for each line of code
_LETTER = re.compile(r"[^\s!-/:-@\[-`{-~]")  # or digit, or other sign that is no mark of Markdown
_THEME = Theme({"markdown.code": "bold cyan", "markdown.code_block": "cyan"})  # on the terminal's own background
_CODE = "ansi_dark"  # in the terminal's own colours


class _Heading(Heading):
    """At the left, whatever its level."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text


class _Markdown(Markdown):
    elements = {**Markdown.elements, "heading_open": _Heading}  # noqa: RUF012 (as in its base)

    def __init__(self, source: str) -> None:
        super().__init__("", code_theme=_CODE, hyperlinks=False)
        parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
        parser.disable(["html_block", "html_inline", "image", "reference", "entity", "autolink"])
        self.parsed = parser.parse(source)
        for token in self.parsed:
            if token.type == "fence":  # in a list or quotation; elsewhere the lines are shown one by one
                token.content = f"{token.markup}{token.info}\n{token.content}{token.markup}"
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


class Renderer:
    """Blocks to rows with styles."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, theme=_THEME, force_terminal=True, highlight=False, emoji=False)

    def block(self, source: str, columns: int) -> list[str]:
        try:
            rows = self._rows(_Markdown(source), columns)
        except Exception:  # whatever a hostile text does to the renderer, it is shown
            return wrapped(source, columns)
        # A table that is too wide is cut; cells beyond its header and titles of links are left out.
        rendered = _STYLE.sub("", "".join(rows))
        lost = Counter(_LETTER.findall(source)) - Counter(_LETTER.findall(rendered))
        return wrapped(source, columns) if lost or rendered.count("…") > source.count("…") else rows

    def code(self, lines: list[str], language: str, columns: int) -> list[str]:
        """The last of these lines of code."""
        try:
            recent = lines[-_HIGHLIGHTED_LINES:]
            while len(recent) > 1 and sum(map(len, recent)) > _HIGHLIGHTED_CHARACTERS:
                del recent[0]
            syntax = Syntax("\n".join(recent), language or "text", theme=_CODE)
            last = syntax.highlight(syntax.code).split("\n", allow_blank=True)[len(recent) - 1]
            return [self._rows(row, columns)[0] for row in last.wrap(self._console, columns, overflow="fold")]
        except Exception:
            return wrapped(lines[-1], columns)

    def _rows(self, renderable: Any, columns: int) -> list[str]:
        self._console.width = columns  # COLUMNS, which rich would use, may be another terminal's
        with self._console.capture() as captured:
            self._console.print(renderable)
        rows = [row.rstrip(" ") for row in captured.get().split("\n")]
        filled = [at for at, row in enumerate(rows) if _STYLE.sub("", row).strip()]
        return rows[filled[0] : filled[-1] + 1] if filled else [""]


class MarkdownText:
    """One reply's text; `push` and `finish` as in Flow."""

    def __init__(self, stream: TextIO) -> None:
        self._region, self._renderer = Region(stream), Renderer(stream)
        self._columns = self._region.columns
        self._line = ""  # the running line
        self._block: list[str] = []  # the lines before it in its block
        self._indent = 0  # where the text of a list's item begins; 0 outside one
        self._fence: re.Match[str] | None = None
        self._code: list[str] = []
        self._begun = self._gap = False  # a gap: empty lines came after the last block
        self._drawn = 0  # characters of the running block that the region shows
        self._flow: Flow | None = None  # of a block that can't be rewritten

    def push(self, text: str) -> None:
        self._notice_width()
        *lines, last = (self._line + text).split("\n")
        for line in lines:
            self._end_line(line)
        self._line = last
        if self._ends_item(last):
            self._finish_block()
        self._draw()

    def finish(self) -> None:
        self._notice_width()
        line, self._line = self._line, ""
        if line:
            self._end_line(line)
        self._finish_block()

    def _notice_width(self) -> None:
        """Rows that the terminal has rewrapped can't be rewritten: the rest of the running block follows below them."""
        if self._region.columns == self._columns:
            return
        self._columns = self._region.columns
        if self._drawn and self._flow is None:
            self._region.finish()
            self._flow = Flow(self._region)

    def _draw(self) -> None:
        """Show the running block as it is written."""
        if self._flow is not None and self._fence is None and self._line.lstrip(" ")[:1] in _MAY_BEGIN:
            return  # it might begin another block, and what flows can't be taken back
        text = "\n".join([*self._block, self._line]).rstrip("\n")
        if not text.strip():
            return
        self._open_gap()
        if self._flow is None:
            rows = wrapped(text, self._columns)
            self._region.show(rows)
            if len(rows) > self._region.most_rows:
                self._region.keep(len(rows) - 1)
                self._flow = Flow(self._region, rows[-1])
        else:
            self._flow.push(text[self._drawn :])
        self._drawn = len(text)

    def _open_gap(self) -> None:
        if self._gap and self._begun:
            self._region.finish([""])
        self._gap, self._begun = False, True

    def _end_line(self, line: str) -> None:
        if self._fence is not None:
            self._end_code(line, self._fence)
        elif not line.strip():
            self._blank()
        else:
            if self._block and self._begins_block(line):
                self._finish_block()
            self._add(line)

    def _blank(self) -> None:
        if self._indent and self._block:
            self._block.append("")  # the next line tells whether the item goes on
        else:
            self._finish_block()
            self._gap = True

    def _begins_block(self, line: str) -> bool:
        structure = _FENCE.match(line) or _HEADING.match(line)
        if self._indent:
            inside = len(line) - len(line.lstrip(" ")) >= self._indent
            return not inside and bool(self._block[-1] == "" or structure or _ITEM.match(line) or _RULE.match(line))
        quote = line.startswith(">") and not self._block[0].startswith(">")
        rule = _RULE.match(line) and not _UNDERLINE.match(line)
        return bool(structure or rule or quote or _FIRST_ITEM.match(line))

    def _ends_item(self, line: str) -> bool:
        """Whether the first character of a running line shows that it is no longer part of a list."""
        return bool(self._indent and self._block and self._block[-1] == "" and line) and not (
            line[0].isspace() or line[0] in "-*+" or line[0].isdigit()
        )

    def _add(self, line: str) -> None:
        fence = _FENCE.match(line) if not self._block else None
        if fence is not None:
            self._fence, self._code = fence, []
            self._show(line, self._dimmed(line))
            return
        item = _ITEM.match(line) if not self._block and not _RULE.match(line) else None
        if item is not None:
            self._indent = item.end() + (0 if item.group().endswith(" ") else 1)
        self._block.append(line)
        whole = len(self._block) == 1 and (_HEADING.match(line) or (_RULE.match(line) and item is None))
        if whole or (self._indent == 0 and len(self._block) > 1 and _UNDERLINE.match(line)):
            self._finish_block()

    def _end_code(self, line: str, fence: re.Match[str]) -> None:
        mark, bare = fence[2], line.strip()
        if bare.startswith(mark) and not bare.strip(mark[0]) and len(line) - len(line.lstrip(" ")) <= 3:
            self._fence = None
            self._show(line, self._dimmed(line))
            return
        indent = min(len(fence[1]), len(line) - len(line.lstrip(" ")))
        self._code.append(line[indent:])
        self._show(line, self._renderer.code(self._code, fence[3], self._columns))

    def _finish_block(self) -> None:
        block, self._block, self._indent = self._block, [], 0
        gap = False
        while block and not block[-1]:
            block.pop()
            gap = True
        if block:
            source = "\n".join(block)
            self._show(source, self._renderer.block(source, self._columns))
        self._gap = self._gap or gap

    def _dimmed(self, line: str) -> list[str]:
        return [f"{DIM}{row}{PLAIN}" for row in wrapped(line, self._columns)]

    def _show(self, source: str, rows: list[str]) -> None:
        """End what is running with these rows; where it can't be rewritten, with the rest of its source."""
        drawn, self._drawn = self._drawn, 0
        if self._flow is not None:
            self._flow.push(source[drawn:])
            self._flow.finish()
            self._flow = None
            return
        self._open_gap()
        self._region.finish(rows)
