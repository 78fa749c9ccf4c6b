"""One reply on standard output: as it is in a pipe or file; wrapped, rendered and without control characters on a
terminal.

Reasoning is dimmed on a terminal and left out of other output. A model's text is untrusted: no control character of it
reaches a terminal.
"""

import sys
from typing import Protocol, TextIO

from earthshine.cli.region import Flow, Region
from earthshine.cli.terminal import DIM, can_rewrite, has_utf8, is_terminal, printable, say
from earthshine.text import Content, Reasoning
from earthshine.text import Event as TextEvent


class _Text(Protocol):
    def push(self, text: str) -> None: ...

    def finish(self) -> None: ...


class _Plain:
    """Text as it comes, and a line break at its end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def push(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def finish(self) -> None:
        self.push("\n")


class Reply:
    """Shows one reply. `markdown`: render it where standard output is a terminal that can show it. `notice` is printed
    on standard error at the end."""

    def __init__(self, *, markdown: bool = True) -> None:
        self._stream, self._markdown = sys.stdout, markdown
        self._terminal, self._rewrites = is_terminal(sys.stdout), can_rewrite(sys.stdout)
        self._texts: list[str] = []
        self._thought: _Text | None = None
        self._answer: _Text | None = None
        self.notice = ""

    @property
    def begun(self) -> bool:
        """Whether anything has been written."""
        return self._thought is not None or self._answer is not None

    @property
    def text(self) -> str:
        """The reply so far, without thoughts."""
        return "".join(self._texts)

    def show(self, event: TextEvent) -> None:
        """Write an event."""
        if isinstance(event, Reasoning):
            self._think(event.text)
        elif isinstance(event, Content):
            self._write(event.text)

    def finish(self) -> str:
        """End the line and return the reply's text."""
        self._end_thought()
        if self._answer is None and not self._rewrites:
            self._answer = _Plain(self._stream)
        if self._answer is not None:
            self._answer.finish()
        if self.notice:
            say(f"({self.notice})")
        return self.text

    def _think(self, text: str) -> None:
        text = self._shown(text)
        if not self._terminal or not (text if self._thought else text.lstrip("\n")):
            return
        if self._thought is None:
            text = text.lstrip("\n")
            self._thought = Flow(Region(self._stream, DIM)) if self._rewrites else _Plain(self._stream)
        self._thought.push(text)

    def _end_thought(self) -> None:
        if self._thought is not None:
            self._thought.finish()
            self._stream.write("\n")
            self._thought = None

    def _write(self, text: str) -> None:
        self._texts.append(text)
        text = self._shown(text)
        if self._terminal and self._answer is None:
            text = text.lstrip("\n")
        if not text:
            return
        self._end_thought()
        self._answer = self._answer or self._open()
        self._answer.push(text)

    def _open(self) -> _Text:
        if not self._rewrites:
            return _Plain(self._stream)
        if self._markdown and has_utf8(self._stream):
            from earthshine.cli.markdown import MarkdownText

            return MarkdownText(self._stream)
        return Flow(Region(self._stream))

    def _shown(self, text: str) -> str:
        """What a terminal may get of the text, with the characters that it has."""
        if not self._terminal:
            return text
        encoding = self._stream.encoding or "utf-8"
        return printable(text).encode(encoding, "replace").decode(encoding)
