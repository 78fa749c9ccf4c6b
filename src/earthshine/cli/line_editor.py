"""Reads what a person types: one line, several between marks or by Alt-Enter, or one pasted text.

Lines are edited by prompt_toolkit where the terminal's cursor moves, and by the terminal itself elsewhere. Control
characters of a paste are left out before anything shows or keeps them.
"""

import sys
from collections.abc import Callable
from typing import Any

from earthshine.cli.history import History
from earthshine.cli.terminal import Terminal, decoded, printable, say
from earthshine.errors import UsageError

_QUOTES = '"""'


def is_open(text: str) -> bool:
    """Whether the text begins with three quotes and does not end with three more."""
    bare = text.strip()
    return bare.startswith(_QUOTES) and not (len(bare) >= 2 * len(_QUOTES) and bare.endswith(_QUOTES))


def message_of(text: str) -> str:
    """The text without the quotes around it, and without control characters."""
    bare = text.strip()
    quoted = len(bare) >= 2 * len(_QUOTES) and bare.startswith(_QUOTES) and bare.endswith(_QUOTES)
    return printable(bare[len(_QUOTES) : -len(_QUOTES)].strip("\n") if quoted else text)


class LineEditor:
    """`history`: where questions are kept; None to keep none. `completions`: what Tab completes."""

    def __init__(self, terminal: Terminal, history: History | None, completions: list[str]) -> None:
        self._terminal, self._history, self._completions = terminal, history, completions
        self._keeps = history is not None
        self._session: Any = None
        self._last = ""  # kept
        self._removed = 0  # control characters of pastes
        self.cleared = False  # whether the interrupt at the prompt removed a text

    def keeps(self, on: bool | None) -> bool:
        """Switch on or off whether questions are kept, or leave it at None; returns which holds.

        Raises UsageError where there is no place for them.
        """
        if on and self._history is None:
            raise UsageError("This session has no place for its questions; start it without --no-history.")
        self._keeps = self._keeps if on is None else on
        return self._keeps

    def read(self, prompt: str) -> str:
        """One message or command. Raises EOFError and KeyboardInterrupt."""
        with self._terminal.reading():
            text = self._read_plain(prompt) if self._terminal.screen is None else self._edit(prompt)
        if self._removed:
            say(f"({self._removed} control characters of the pasted text were left out)")
            self._removed = 0
        self._keep(printable(text))
        return message_of(text)

    def _read_plain(self, prompt: str) -> str:
        try:
            lines = [_line(prompt)]
            while is_open("\n".join(lines)):
                lines.append(_line("  "))
        except (EOFError, KeyboardInterrupt):
            say("")  # the prompt's line ends
            raise
        return "\n".join(lines)

    def _edit(self, prompt: str) -> str:
        self._session = self._session or self._begin()
        self.cleared = False
        text = self._session.prompt(prompt)
        assert isinstance(text, str)
        return decoded(text)

    def _begin(self) -> Any:
        """prompt_toolkit's session, without the request for the cursor's position, which some terminals never answer
        and whose late answer the shell would get."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.output.vt100 import Vt100_Output
        from prompt_toolkit.shortcuts import CompleteStyle

        screen = self._terminal.screen
        assert screen is not None
        like = Vt100_Output.from_pty(screen)
        output = Vt100_Output(screen, like.get_size, enable_bell=False, enable_cpr=False)
        return PromptSession(
            output=output,
            history=InMemoryHistory(self._try(lambda history: history.read()) or []),
            key_bindings=self._keys(),
            multiline=True,
            prompt_continuation="  ",
            completer=WordCompleter(self._completions, sentence=True),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            enable_suspend=True,
            tempfile_suffix=".md",
        )

    def _keep(self, text: str) -> None:
        if self._keeps and text.strip() and text != self._last:
            self._last = text
            self._try(lambda history: history.add(text))

    def _try(self, act: Callable[[History], Any]) -> Any:
        """Where the file fails, say so once and go on without it."""
        if self._history is None:
            return None
        try:
            return act(self._history)
        except UsageError as error:
            self._history, self._keeps = None, False
            say(f"{error} Questions are not kept in this session.")
            return None

    def _keys(self) -> Any:
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.keys import Keys

        keys = KeyBindings()

        @keys.add("enter")
        def _(event: Any) -> None:
            if is_open(event.current_buffer.text):
                event.current_buffer.insert_text("\n")
            else:
                event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def _(event: Any) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("c-g")
        @keys.add("c-x", "c-e")
        def _(event: Any) -> None:
            event.app.loop.set_exception_handler(_not_edited)  # until this question is read
            event.current_buffer.open_in_editor()

        @keys.add("c-c")
        def _(event: Any) -> None:
            self.cleared = bool(event.current_buffer.text)
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

        @keys.add(Keys.BracketedPaste)
        def _(event: Any) -> None:
            text = event.data.replace("\r\n", "\n").replace("\r", "\n")
            self._removed += len(text) - len(printable(text))
            event.current_buffer.insert_text(printable(text))

        return keys


def _not_edited(loop: Any, context: dict[str, Any]) -> None:
    """Reports that the editor's file could not be written or read; the text stays as it was."""
    from prompt_toolkit.application import run_in_terminal

    error = context.get("exception")
    if not isinstance(error, (OSError, UnicodeError)):
        loop.default_exception_handler(context)
        return
    run_in_terminal(lambda: say(f"The text of the editor can't be used: {error}."))


def _line(prompt: str) -> str:
    """One line from a terminal that edits it."""
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return line.decode("utf-8", "surrogateescape").rstrip("\n")
