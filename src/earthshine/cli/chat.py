"""`earthshine chat`: a conversation in the terminal, or one answer for -p and standard input.

The session keeps what was computed, so each turn costs its new tokens only. Reasoning is shown dimmed in a terminal
and left out of a pipe. What a model writes is untrusted: control characters never reach a terminal.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

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
_GREETING = "Ask away; /clear starts anew, /help lists more, and /bye or Ctrl-D ends."
_COMMAND = re.compile(r"/[A-Za-z?_-]*([ \t].*)?")  # one line; a path or a pasted text is a message
_ENDS = ("/bye", "/exit", "/quit")
_HELP = """/clear  starts a new conversation
/bye    ends, and so do /exit, /quit and Ctrl-D
/help   shows this, and so does /?
Ctrl-C stops a reply. A pasted text is one message, with its empty lines.
A message that begins with such a word takes a space before it: " /help"."""


@dataclass(frozen=True, slots=True)
class ChatOptions:
    prompt: str | None
    system: str | None
    thinking: bool
    stop: tuple[str, ...]
    plan: Plan | PlanArgs
    stats: bool = False


def run_chat(model: str | None, options: ChatOptions, sampling: dict[str, Any]) -> None:
    """Answer -p or standard input, or converse. Wrong options are refused before a model is loaded."""
    SamplingParams(**sampling)
    StopStrings(options.stop)
    question = _question(options)
    if question is None:
        with Terminal() as terminal:
            _converse(_open(model, options, sampling), terminal)
    elif not _open(model, options, sampling).ask(question):
        raise KeyboardInterrupt


def _open(model: str | None, options: ChatOptions, sampling: dict[str, Any]) -> "Conversation":
    folder, tokenizer = find_readable(model)
    template = load_template(folder)
    params = replace(sampling_defaults(folder), **sampling)
    model_in_use = load_with_progress(folder, options.plan)
    return Conversation(model_in_use, tokenizer, template, options, params)


def _question(options: ChatOptions) -> str | None:
    """The one question to answer, or None for a conversation. What is piped in comes before what -p asks about it."""
    asked = options.prompt
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if asked is None and terminal:
        return None
    if asked is not None and not asked.strip():
        raise UsageError("There is no question; give one with -p or on standard input.")
    parts = [] if asked is None else [_encodable(asked.strip(), "The question")]
    if not terminal and (asked is None or sys.stdin is not None):
        parts.insert(0, read_text(standard_input(), "Standard input").strip())
    question = "\n\n".join(filter(None, parts))
    if not question:
        raise UsageError("There is no question; give one with -p or on standard input.")
    return question


def _encodable(text: str, what: str) -> str:
    """Arguments and terminal lines may hold bytes that are not UTF-8, which Python carries as lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(f"{what} is not UTF-8 text: character {error.start} can't be encoded.") from None
    return text


class Conversation:
    """Messages so far, and a session that holds their tokens."""

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
        """Print the reply as it is written; False if it was interrupted. Raises ContextError.

        An interrupted reply counts as far as it came; a question that got no word of one is forgotten.
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
            if screen.begun:  # else the terminal would stay in the middle of a line, perhaps a dim one
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
    """One reply on its way to standard output. `notice` is said on standard error at the end."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stops = StopStrings(stop)
        self._terminal = sys.stdout.isatty()
        self._said: list[str] = []
        self._dimmed = False
        self.notice = ""

    @property
    def begun(self) -> bool:
        """Whether anything was written."""
        return self._dimmed or any(self._said)

    def show(self, event: TextEvent) -> bool:
        """True when a stop text has ended the reply."""
        if isinstance(event, Reasoning):
            if self._terminal:
                self._write(event.text, dim=True)
            return False
        if not isinstance(event, Content):
            return False
        text, stopped = self._stops.push(event.text)
        self._say(text)
        return stopped

    def finish(self) -> str:
        """Ends the line; returns the reply's text."""
        self._say(self._stops.flush())
        self._write("\n", dim=False)
        if self.notice:
            print(f"({self.notice})", file=sys.stderr)
        return "".join(self._said)

    def _say(self, text: str) -> None:
        self._said.append(text)
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
    """Read questions from the terminal until it ends."""
    print(_GREETING, file=sys.stderr)
    while True:
        try:
            line = _encodable(terminal.ask("> "), "That line")
            if _COMMAND.fullmatch(line):
                if not _obey(line.strip(), conversation):
                    return
            elif line.strip():
                conversation.ask(line.strip())
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
        except UnicodeDecodeError:
            print("That line is not UTF-8 text; it was left out.", file=sys.stderr)
        except EarthshineError as error:  # a read that failed too: the conversation goes on from where it was
            print(error, file=sys.stderr)


def _obey(command: str, conversation: Conversation) -> bool:
    """False where the conversation ends."""
    if command in _ENDS:
        return False
    if command == "/clear":
        conversation.clear()
        print("A new conversation begins.", file=sys.stderr)
    elif command in ("/help", "/?"):
        print(_HELP, file=sys.stderr)
    else:
        print(f"There is no command {shown(command)}.\n{_HELP}", file=sys.stderr)
    return True
