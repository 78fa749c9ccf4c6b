"""Reads what a person types: one line, several between marks or by Alt-Enter, one pasted text, or that of an editor.

Lines are edited by prompt_toolkit where the terminal's cursor moves, and by the terminal itself elsewhere. Control
characters of a paste or an editor are left out before anything shows or keeps them.
"""

import sys
from collections.abc import Callable
from typing import Any

from earthshine.cli.history import History
from earthshine.cli.terminal import Terminal, decoded, printable, say
from earthshine.cli.text_editor import edited, require_short
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
        self._removed = 0  # control characters of pastes and of an editor's text
        self._interrupted = False  # after Enter, while the prompt ends
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
            say(f"({self._removed} control characters were left out)")
            self._removed = 0
        self._keep(printable(text))
        if self._interrupted:
            raise KeyboardInterrupt
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
        self.cleared = self._interrupted = False
        text = self._session.prompt(prompt, pre_run=_name_faults, set_exception_handler=False)
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
            event.app.create_background_task(self._open_editor(event.current_buffer))

        @keys.add("c-c")
        @keys.add("<sigint>")
        def _(event: Any) -> None:
            self.cleared = bool(event.current_buffer.text)
            if event.app.is_running and not event.app.is_done:
                event.app.exit(exception=KeyboardInterrupt, style="class:aborting")
            else:
                self._interrupted = True

        @keys.add(Keys.BracketedPaste)
        def _(event: Any) -> None:
            self._paste(event.current_buffer, event.data.replace("\r\n", "\n").replace("\r", "\n"))

        @keys.add(Keys.Vt100MouseEvent)
        def _(event: Any) -> None:
            """The mouse is not used; the library would fail on colours, which it takes for its events."""

        return keys

    def _paste(self, buffer: Any, text: str) -> None:
        try:
            require_short(len(buffer.text) + len(text))
        except UsageError as error:
            _say_above(str(error))
            return
        self._removed += len(text) - len(printable(text))
        buffer.insert_text(printable(text))

    async def _open_editor(self, buffer: Any) -> None:
        from prompt_toolkit.application import run_in_terminal
        from prompt_toolkit.document import Document

        def attempt() -> str | None:
            try:
                return edited(buffer.text)
            except UsageError as error:
                say(str(error))
                return None

        text = await run_in_terminal(attempt, in_executor=True)
        if text is not None:
            self._removed += len(text) - len(printable(text))
            buffer.document = Document(printable(text))


def _name_faults() -> None:
    """Say in a sentence what fails while a line is edited; the library would show a traceback and ask for Enter."""
    from prompt_toolkit.application import get_app

    loop = get_app().loop
    assert loop is not None
    loop.set_exception_handler(
        lambda _, context: _say_above(f"A key was left out: {context.get('exception') or context.get('message')}.")
    )


def _say_above(text: str) -> None:
    """While a line is edited, which is then shown again."""
    from prompt_toolkit.application import run_in_terminal

    run_in_terminal(lambda: say(text))


def _line(prompt: str) -> str:
    """One line from a terminal that edits it."""
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return line.decode("utf-8", "surrogateescape").rstrip("\n")
