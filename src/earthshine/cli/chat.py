"""`earthshine chat`: a conversation in the terminal, or one answer for a question and standard input.

Standard input that is not a terminal is read to its end and put before the question. A conversation ends by /bye or
Ctrl-D; Ctrl-C stops a reply.
"""

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earthshine.cli.history import History
from earthshine.cli.line_editor import LineEditor
from earthshine.cli.options import ChatOptions, read_text, standard_input
from earthshine.cli.progress import ProgressLine
from earthshine.cli.terminal import Terminal, decoded, has_utf8, is_terminal, say
from earthshine.errors import EarthshineError, UsageError
from earthshine.settings import read_settings
from earthshine.untrusted import encodable, shown

if TYPE_CHECKING:
    from earthshine.cli.conversation import Conversation

_WAIT_SECONDS = 2.0  # standard input that takes longer is named
_EMPTY = "The question is empty; give one after the model, with -p or on standard input."


def run_chat(model: str | None, options: ChatOptions, sampling: dict[str, Any]) -> None:
    """Answer a question or standard input, or chat in the terminal. Invalid options are refused before a model is
    loaded."""
    _replace_unencodable()
    question = _question(options)
    if question is None:
        with Terminal() as terminal:
            _converse(terminal, model, options, sampling)
    elif not _open(model, options, sampling)[0].ask(question):
        raise KeyboardInterrupt


def _open(model: str | None, options: ChatOptions, sampling: dict[str, Any]) -> tuple["Conversation", str]:
    """The conversation, and its greeting. What is loaded is shown before torch is imported, which takes seconds."""
    name = shown(Path(model or "gleam"))[1:-1]
    with ProgressLine(f"Loading {name} ...") as line:
        from earthshine.cli.open_chat import open_conversation

        return open_conversation(model, options, sampling, line)


def _replace_unencodable() -> None:
    """A terminal or locale without a character gets a question mark instead, and the person is told once."""
    poor = [each for each in (sys.stdout, sys.stderr) if each is not None and not has_utf8(each)]
    for stream in poor:
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    if poor:
        say(f"(Characters that {poor[0].encoding} lacks are shown as ?; LANG=C.UTF-8 gives them all.)")


def _question(options: ChatOptions) -> str | None:
    """The question to answer, or None for a conversation. Standard input comes before the text of the options."""
    asked = options.prompt
    terminal = is_terminal(sys.stdin)
    if asked is None and terminal:
        return None
    if asked is not None and not asked.strip():
        raise UsageError(_EMPTY)
    parts = [] if asked is None else [encodable(decoded(asked.strip()), "The question")]
    if not terminal and (asked is None or sys.stdin is not None):
        parts.insert(0, _standard_text(asked is not None).strip())
    question = "\n\n".join(filter(None, parts))
    if not question:
        raise UsageError(_EMPTY)
    return question


def _standard_text(asked: bool) -> str:
    """All of standard input. Where its end does not come soon, standard error tells what is waited for."""
    place = ", which comes before the question; </dev/null gives none" if asked else ", which is the question"
    timer = threading.Timer(_WAIT_SECONDS, say, [f"(reading standard input to its end{place})"])
    timer.daemon = True
    timer.start()
    try:
        return read_text(standard_input(), "Standard input")
    finally:
        timer.cancel()


def _history(options: ChatOptions) -> History | None:
    settings = read_settings()
    if not (options.history and settings.history):
        return None
    try:
        return History(settings.history_file)
    except UsageError as error:
        say(f"{error} Questions are not kept.")
        return None


def _converse(terminal: Terminal, model: str | None, options: ChatOptions, sampling: dict[str, Any]) -> None:
    """Answer questions from the terminal until its end."""
    conversation, greeting = _open(model, options, sampling)
    from earthshine.cli.commands import Commands, completions, is_command

    editor = LineEditor(terminal, _history(options), completions())
    say(greeting)
    commands = Commands(conversation, editor.keeps)
    while True:
        try:
            line = editor.read("> ")
        except EOFError:
            return
        except KeyboardInterrupt:
            if not editor.cleared:
                say("(/bye or Ctrl-D ends)")
            continue
        try:
            if is_command(line):
                if not commands.run(line):
                    return
            elif line.strip():
                conversation.ask(encodable(line.strip(), "The message"))
                say("")
        except KeyboardInterrupt:
            say("")
        except EarthshineError as error:  # the conversation can continue
            say(str(error))
