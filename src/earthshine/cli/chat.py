"""`earthshine chat`: a conversation in the terminal, or one answer for -p and standard input.

The session keeps the state of the conversation, so only new tokens are computed for each message. Reasoning is dimmed
in a terminal and left out of other output. A model's text is untrusted: control characters never reach a terminal.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from earthshine.cli.models import announce_download
from earthshine.cli.options import load_with_progress, read_text, standard_input
from earthshine.cli.progress import TokenProgress
from earthshine.cli.stats import Tally
from earthshine.cli.terminal import Terminal
from earthshine.engine import Finished, LoadedModel, SamplingParams, TokenEvent, sampling_defaults
from earthshine.errors import EarthshineError, TextError, UsageError
from earthshine.hub import find_readable
from earthshine.plan import Plan, PlanArgs
from earthshine.text import (
    ChatTemplate,
    Content,
    Reasoning,
    RegionParser,
    StopStrings,
    Tokenizer,
    call_form,
    leaves_thinking_open,
    load_template,
    region_parser,
)
from earthshine.text import Event as TextEvent
from earthshine.untrusted import shown

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_INTERRUPTED = "interrupted"
_GREETING = "Ask a question. /clear starts a new conversation, /help shows more, and /bye or Ctrl-D ends."
_COMMAND = re.compile(r"/[A-Za-z?_-]*([ \t].*)?")  # one line; a path or a pasted text is a message
_ENDS = ("/bye", "/exit", "/quit")
_HELP = """/clear  start a new conversation
/bye    end; also /exit, /quit and Ctrl-D
/help   show this; also /?
Ctrl-C stops a reply. A pasted text is one message, including its empty lines.
To send a message that begins with a command, put a space before it: " /help"."""


@dataclass(frozen=True, slots=True)
class ChatOptions:
    prompt: str | None
    system: str | None
    thinking: bool
    stop: tuple[str, ...]
    plan: Plan | PlanArgs
    stats: bool = False


def run_chat(model: str | None, options: ChatOptions, sampling: dict[str, Any]) -> None:
    """Answer -p or standard input, or chat in the terminal. Invalid options are refused before a model is loaded."""
    SamplingParams(**sampling, stop=options.stop)
    question = _question(options)
    if question is None:
        with Terminal() as terminal:
            _converse(_open(model, options, sampling), terminal)
    elif not _open(model, options, sampling).ask(question):
        raise KeyboardInterrupt


def _open(model: str | None, options: ChatOptions, sampling: dict[str, Any]) -> "Conversation":
    folder, tokenizer = find_readable(model, announce_download)
    template = load_template(folder)
    params = replace(sampling_defaults(folder), **sampling)
    model_in_use = load_with_progress(folder, options.plan)
    return Conversation(model_in_use, tokenizer, template, options, params)


def _question(options: ChatOptions) -> str | None:
    """The question to answer, or None for a conversation. Standard input comes before the text of -p."""
    asked = options.prompt
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if asked is None and terminal:
        return None
    if asked is not None and not asked.strip():
        raise UsageError("The question is empty; give one with -p or on standard input.")
    parts = [] if asked is None else [_encodable(asked.strip(), "The question")]
    if not terminal and (asked is None or sys.stdin is not None):
        parts.insert(0, read_text(standard_input(), "Standard input").strip())
    question = "\n\n".join(filter(None, parts))
    if not question:
        raise UsageError("The question is empty; give one with -p or on standard input.")
    return question


def _encodable(text: str, what: str) -> str:
    """The text. Raises TextError for bytes that are not UTF-8, which Python represents as lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(f"{what} is not UTF-8 text: character {error.start} can't be encoded.") from None
    return text


class Conversation:
    """The messages so far, and a session with their tokens."""

    def __init__(
        self,
        model: LoadedModel,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        options: ChatOptions,
        params: SamplingParams,
    ) -> None:
        self._tokenizer, self._template, self._options, self._params = tokenizer, template, options, params
        self._model, self._room = model, model.plan.memory.context_tokens
        self._session = model.session()
        self.clear()

    def clear(self) -> None:
        system = self._options.system
        self._messages: list[dict[str, Any]] = []
        if system:
            self._messages.append({"role": "system", "content": _encodable(system, "The system message")})

    def ask(self, question: str) -> bool:
        """Print the reply as it is generated. Returns False if it was interrupted. Raises ContextError.

        The text of an interrupted reply stays in the conversation; without any text the question is removed too.
        """
        messages = [*self._messages, {"role": "user", "content": question}]
        prompt = self._template.encode(self._tokenizer, messages, thinking=self._options.thinking)
        thinking = leaves_thinking_open(self._tokenizer, prompt)
        form = call_form(self._tokenizer, self._template)
        parser = region_parser(self._tokenizer, form, thinking=thinking)
        screen = _Screen(self._options.stop)
        tally = Tally(self._model)
        try:
            with TokenProgress() as progress:
                tally.synced(self._session.sync(prompt, progress.report))
            for event in self._events(parser, screen, tally):
                if screen.show(event):
                    break
        except KeyboardInterrupt:
            screen.notice = _INTERRUPTED
        except EarthshineError:
            if screen.begun:  # end the line, which may be dimmed
                screen.finish()
            raise
        reply = screen.finish()
        if self._options.stats:
            print(tally.summary(), file=sys.stderr)
        interrupted = screen.notice == _INTERRUPTED
        if reply or not interrupted:
            self._messages = [*messages, {"role": "assistant", "content": reply}]
        return not interrupted

    def _events(self, parser: RegionParser, screen: "_Screen", tally: Tally) -> Iterator[TextEvent]:
        for event in self._session.generate(self._params):
            if isinstance(event, TokenEvent):
                tally.token()
                yield from parser.push(event.token)
            elif isinstance(event, Finished) and event.reason == "length":
                screen.notice = f"stopped after {self._params.max_tokens} tokens"
            elif isinstance(event, Finished) and event.reason == "context":
                screen.notice = f"stopped: the context of {self._room} tokens is full"
        yield from parser.flush()


class _Screen:
    """Writes one reply to standard output. `notice` is printed on standard error at the end."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stops = StopStrings(stop)
        self._terminal = sys.stdout.isatty()
        self._text: list[str] = []
        self._dimmed = False
        self.notice = ""

    @property
    def begun(self) -> bool:
        """Whether anything has been written."""
        return self._dimmed or any(self._text)

    def show(self, event: TextEvent) -> bool:
        """Write an event. Returns whether a stop text has ended the reply."""
        if isinstance(event, Reasoning):
            if self._terminal:
                self._write(event.text, dim=True)
            return False
        if not isinstance(event, Content):
            return False
        text, stopped = self._stops.push(event.text)
        self._show_text(text)
        return stopped

    def finish(self) -> str:
        """End the line and return the reply's text."""
        self._show_text(self._stops.flush())
        self._write("\n", dim=False)
        if self.notice:
            print(f"({self.notice})", file=sys.stderr)
        return "".join(self._text)

    def _show_text(self, text: str) -> None:
        self._text.append(text)
        self._write(text, dim=False)

    def _write(self, text: str, *, dim: bool) -> None:
        if self._terminal:
            text = text.translate(_CONTROLS)
            if text and dim != self._dimmed:
                text = (_DIM if dim else f"{_PLAIN}\n\n") + text
                self._dimmed = dim
        sys.stdout.write(text)
        sys.stdout.flush()


def _converse(conversation: Conversation, terminal: Terminal) -> None:
    """Answer questions from the terminal until its end."""
    print(_GREETING, file=sys.stderr)
    while True:
        try:
            line = _encodable(terminal.ask("> "), "The line")
            if _COMMAND.fullmatch(line):
                if not _run_command(line.strip(), conversation):
                    return
            elif line.strip():
                conversation.ask(line.strip())
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
        except UnicodeDecodeError:
            print("That line is not UTF-8 text and was ignored.", file=sys.stderr)
        except EarthshineError as error:  # also a failed read: the conversation can continue
            print(error, file=sys.stderr)


def _run_command(command: str, conversation: Conversation) -> bool:
    """Returns False for a command that ends the conversation."""
    if command in _ENDS:
        return False
    if command == "/clear":
        conversation.clear()
        print("New conversation.", file=sys.stderr)
    elif command in ("/help", "/?"):
        print(_HELP, file=sys.stderr)
    else:
        print(f"Unknown command {shown(command)}.\n{_HELP}", file=sys.stderr)
    return True
