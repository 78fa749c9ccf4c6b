"""A conversation with a loaded model: its messages, how replies are chosen, and a session with their tokens.

The session keeps the state of the conversation, so only new tokens are computed for each message. A reply that is
interrupted stays as far as it came; a question that got no word of reply is removed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from earthshine.cli.progress import ProgressLine
from earthshine.cli.reply import Reply
from earthshine.cli.saved_conversation import SavedConversation
from earthshine.cli.stats import Tally
from earthshine.cli.terminal import say
from earthshine.engine import Finished, LoadedModel, SamplingParams, TokenEvent
from earthshine.errors import ContextError, EarthshineError, TextError, UsageError
from earthshine.text import (
    ChatTemplate,
    RegionParser,
    Tokenizer,
    call_form,
    can_think,
    leaves_thinking_open,
    region_parser,
)
from earthshine.text import Event as TextEvent

_INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Choices:
    """What a person can change between two replies. `params.stop` ends a reply before one of its texts."""

    params: SamplingParams
    system: str | None = None
    thinking: bool = True
    markdown: bool = True
    stats: bool = False


def encodable(text: str, what: str) -> str:
    """The text. Raises TextError for bytes that are not UTF-8, which Python represents as lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(f"{what} is not UTF-8 text: character {error.start} can't be encoded.") from None
    return text


class Conversation:
    """The messages so far, and a session with their tokens. `choices` may be replaced between two replies."""

    def __init__(
        self, model: LoadedModel, name: str, tokenizer: Tokenizer, template: ChatTemplate, choices: Choices
    ) -> None:
        self.name, self.choices = name, choices
        self._tokenizer, self._template, self._model = tokenizer, template, model
        self._session = model.session()
        self._messages: list[dict[str, Any]] = []  # without the system message
        if choices.system:
            encodable(choices.system, "The system message")

    @property
    def room(self) -> int:
        """Tokens that the conversation can hold."""
        return self._model.plan.memory.context_tokens

    @property
    def can_think(self) -> bool:
        """Whether the model can be asked to think, or not to."""
        return can_think(self._tokenizer, self._template)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All messages, the system message first where there is one."""
        system = self.choices.system
        return [*([{"role": "system", "content": system}] if system else []), *self._messages]

    def close(self) -> None:
        """Give the session's pages back to the model."""
        self._session.close()

    def n_tokens(self) -> int:
        """Tokens of all messages; 0 where there are none."""
        return len(self._encode(self.messages)) if self._messages else 0

    def clear(self) -> None:
        self._messages = []

    def saved(self, settings: dict[str, Any]) -> SavedConversation:
        return SavedConversation(self.name, self._model.plan.model, self.messages, settings)

    def restore(self, saved: SavedConversation, choices: Choices) -> None:
        """Go on with these messages. Raises ContextError for too many, and TextError for what the model's template
        refuses; the conversation is then as it was."""
        system, rest = None, saved.messages
        if rest and rest[0]["role"] == "system":
            system, rest = rest[0]["content"], rest[1:]
        before = self._messages, self.choices
        self._messages, self.choices = rest, replace(choices, system=system)
        try:
            if (n_tokens := self.n_tokens()) >= self.room:
                raise ContextError(
                    f"It has {n_tokens} tokens, and this conversation has room for {self.room}; start with --context."
                )
        except BaseException:  # an interrupt among them
            self._messages, self.choices = before
            raise

    def is_of_this_model(self, saved: SavedConversation) -> bool:
        return saved.model_id == self._model.plan.model

    def ask(self, question: str) -> bool:
        """Print the reply as it is generated. Returns False if it was interrupted. Raises ContextError.

        The text of an interrupted reply stays in the conversation; without any text the question is removed too.
        """
        return self._reply([*self._messages, {"role": "user", "content": question}])

    def regenerate(self) -> bool:
        """As `ask` with the last question, whose reply is replaced. Raises UsageError where there is none."""
        last = self._messages[-1:]
        messages = self._messages[:-1] if last and last[0]["role"] == "assistant" else self._messages
        if not messages or messages[-1]["role"] != "user":
            raise UsageError("There is no reply yet that could be generated again; ask a question first.")
        return self._reply(messages)

    def _encode(self, messages: list[dict[str, Any]]) -> list[int]:
        return self._template.encode(self._tokenizer, messages, thinking=self.choices.thinking)

    def _reply(self, messages: list[dict[str, Any]]) -> bool:
        choices = self.choices
        prompt = self._encode([*self.messages[: bool(choices.system)], *messages])
        thinking = leaves_thinking_open(self._tokenizer, prompt)
        parser = region_parser(self._tokenizer, call_form(self._tokenizer, self._template), thinking=thinking)
        shown = Reply(tuple(choices.params.stop), markdown=choices.markdown)
        tally = Tally(self._model)
        try:
            with ProgressLine() as line:
                tally.synced(self._session.sync(prompt, line.prompt))
            for event in self._events(parser, shown, tally):
                if shown.show(event):
                    break
        except KeyboardInterrupt:
            shown.notice = _INTERRUPTED
        except EarthshineError:
            if shown.begun:  # end the line, which may be dimmed
                shown.finish()
            raise
        reply = shown.finish()
        if choices.stats:
            say(tally.summary())
        interrupted = shown.notice == _INTERRUPTED
        if reply or not interrupted:
            self._messages = [*messages, {"role": "assistant", "content": reply}]
        return not interrupted

    def _events(self, parser: RegionParser, shown: Reply, tally: Tally) -> Iterator[TextEvent]:
        for event in self._session.generate(self.choices.params):
            if isinstance(event, TokenEvent):
                tally.token()
                yield from parser.push(event.token)
            elif isinstance(event, Finished) and event.reason == "length":
                shown.notice = f"stopped after {self.choices.params.max_tokens} tokens"
            elif isinstance(event, Finished) and event.reason == "context":
                shown.notice = f"stopped: the context of {self.room} tokens is full"
        yield from parser.flush()
