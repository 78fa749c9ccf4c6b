"""`earthshine chat`: a conversation in the terminal, or one answer for -p or standard input.

The session keeps what was computed, so each turn costs its new tokens only. Reasoning is shown dimmed in a terminal
and left out of a pipe. What a model writes is untrusted: control characters never reach a terminal.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from earthshine.cli.options import Holding, read_text, standard_input
from earthshine.cli.progress import TokenProgress
from earthshine.cli.source import find_model
from earthshine.cli.stats import Tally
from earthshine.engine import Finished, LoadedModel, SamplingParams, TokenEvent, sampling_defaults
from earthshine.errors import EarthshineError, TextError, UsageError
from earthshine.text import (
    ChatTemplate,
    Content,
    Reasoning,
    RegionParser,
    StopStrings,
    Tokenizer,
    leaves_thinking_open,
    load_template,
    load_tokenizer,
)
from earthshine.text import Event as TextEvent

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_INTERRUPTED = "interrupted"
_GREETING = "Ask away; /clear starts anew, and an empty line or Ctrl-D ends."


@dataclass(frozen=True, slots=True)
class ChatOptions:
    prompt: str | None
    system: str | None
    thinking: bool
    stop: tuple[str, ...]
    holding: Holding
    stats: bool = False


def run_chat(model: str | None, options: ChatOptions, sampling: dict[str, Any]) -> None:
    """Answer -p or standard input, or converse. Wrong options are refused before a model is loaded."""
    options.holding.planned()
    SamplingParams(**sampling)
    StopStrings(options.stop)
    question = _question(options)
    folder = find_model(model)
    tokenizer, template = load_tokenizer(folder), load_template(folder)
    params = SamplingParams(**sampling_defaults(folder) | sampling)
    model_in_use = options.holding.load(folder)
    tokenizer.require_fit(model_in_use.spec.vocab_size, model_in_use.spec.stop_tokens)
    conversation = Conversation(model_in_use, tokenizer, template, options, params)
    if question is not None:
        if not conversation.ask(question):
            raise KeyboardInterrupt
    else:
        _converse(conversation)


def _question(options: ChatOptions) -> str | None:
    """The one question to answer, or None for a conversation."""
    question = options.prompt
    if question is None:
        if sys.stdin is not None and sys.stdin.isatty():
            return None
        question = read_text(standard_input(), "Standard input")
    if not question.strip():
        raise UsageError("There is no question; give one with -p or on standard input.")
    return _encodable(question.strip(), "The question")


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
        self._model, self._room = model, model.plan.division.context_tokens
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
        parser = RegionParser(self._tokenizer, thinking=leaves_thinking_open(self._tokenizer, prompt))
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


def _converse(conversation: Conversation) -> None:
    """Read questions from the terminal until it ends."""
    import readline  # noqa: F401  (line editing and history for input)

    print(_GREETING, file=sys.stderr)
    while True:
        try:
            line = _encodable(input("> ").strip(), "That line")
            if not line:
                return
            if line == "/clear":
                conversation.clear()
            else:
                conversation.ask(line)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
        except UnicodeDecodeError:
            print("That line is not UTF-8 text; it was left out.", file=sys.stderr)
        except EarthshineError as error:  # a read that failed too: the conversation goes on from where it was
            print(error, file=sys.stderr)
