"""A conversation with a loaded model: its messages, how replies are chosen, and a session with their tokens.

The session keeps the state of the conversation, so only new tokens are computed for each message. A reply that is
interrupted stays as far as it came; a question that got no word of reply is removed.
"""

from dataclasses import dataclass, replace
from typing import Any

from earthshine.cli.answer_format import is_json
from earthshine.cli.attached import Attached
from earthshine.cli.progress import ProgressLine
from earthshine.cli.reply import Reply
from earthshine.cli.saved_conversation import SavedConversation
from earthshine.cli.stats import Tally
from earthshine.cli.terminal import say
from earthshine.engine import Event, Finished, LoadedModel, SamplingParams, TokenEvent
from earthshine.errors import ContextError, EarthshineError, UsageError
from earthshine.generation.output import Choice
from earthshine.generation.prompts import Prompts
from earthshine.generation.request import Delta, Ended, Format, GenerationRequest
from earthshine.spec import ModelSpec
from earthshine.text import ChatTemplate, Tokenizer, can_think
from earthshine.untrusted import encodable, shown

_INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Choices:
    """What a person can change between two replies.

    `params.stop` ends a reply before one of its texts; `form`: what a reply must be, None for any text; `multi_turn`:
    earlier messages are sent with a question, or else the system message alone.
    """

    params: SamplingParams
    system: str | None = None
    thinking: bool = True
    markdown: bool = True
    stats: bool = False
    form: Format | None = None
    multi_turn: bool = True


class Conversation:
    """The messages so far, and a session with their tokens. `choices` may be replaced between two replies.

    `prompts`: for `tokenizer` and `template`; it makes prompts of the messages, and grammars of formats.
    """

    def __init__(
        self,
        model: LoadedModel,
        name: str,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        choices: Choices,
        prompts: Prompts | None = None,
    ) -> None:
        self.name, self.choices = name, choices
        self._tokenizer, self._template, self._model = tokenizer, template, model
        self._prompts = prompts or prompts_for(tokenizer, template, model.spec)
        self._session = model.session()
        self._messages: list[dict[str, Any]] = []  # without the system message
        self._attached: list[Attached] = []  # to the next question
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
        """Tokens of the messages that are sent, and of their reply; 0 where there are none."""
        return self._prompts.count(self._request(self._messages)) if self._messages else 0

    def check(self, form: Format) -> None:
        """Raises TextError for a format that replies of this model can't be held to."""
        self._prompts.check(form)

    @property
    def attached(self) -> list[Attached]:
        """The files that the next question begins with."""
        return list(self._attached)

    def attach(self, file: Attached) -> int:
        """Put a file before the next question; returns its tokens. Raises ContextError for more than there is room."""
        n_tokens = len(self._tokenizer.encode(file.message, False, limit=self.room))
        if n_tokens >= self.room:
            raise ContextError(
                f"{shown(file.name)} is too long: this conversation has room for {self.room} tokens. Start with a "
                "larger --context, or read a part of it."
            )
        self._attached.append(file)
        return n_tokens

    def clear(self) -> None:
        self._messages, self._attached = [], []

    def saved(self, settings: dict[str, Any]) -> SavedConversation:
        return SavedConversation(self.name, self._model.plan.model, self.messages, settings)

    def restore(self, saved: SavedConversation, choices: Choices) -> None:
        """Go on with these messages. Raises ContextError for too many, and TextError for what the model's template
        refuses, and for a format that can't be enforced; the conversation is then as it was."""
        system, rest = None, saved.messages
        if rest and rest[0]["role"] == "system":
            system, rest = rest[0]["content"], rest[1:]
        if choices.form is not None:
            self.check(choices.form)
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

        The text of an interrupted reply stays in the conversation; without any text the question is removed too, and
        files stay attached.
        """
        content = "\n\n".join([*(file.message for file in self._attached), question])
        before = self._messages
        whole = self._reply([*before, {"role": "user", "content": content}])
        if self._messages is not before:
            self._attached = []
        return whole

    def regenerate(self) -> bool:
        """As `ask` with the last question, whose reply is replaced. Raises UsageError where there is none."""
        last = self._messages[-1:]
        messages = self._messages[:-1] if last and last[0]["role"] == "assistant" else self._messages
        if not messages or messages[-1]["role"] != "user":
            raise UsageError("There is no reply yet that could be generated again; ask a question first.")
        return self._reply(messages)

    def _request(self, messages: list[dict[str, Any]]) -> GenerationRequest:
        """The request for `messages`, which lack the system message."""
        choices, first = self.choices, 0
        if not choices.multi_turn:
            first = max(at for at, message in enumerate(messages) if message["role"] == "user" or not at)
        messages = [*self.messages[: bool(choices.system)], *messages[first:]]
        return GenerationRequest(messages, choices.params, thinking=choices.thinking, format=choices.form)

    def _reply(self, messages: list[dict[str, Any]]) -> bool:
        choices = self.choices
        choice = self._prompts.choices(self._request(messages))[0]
        display = Reply(markdown=choices.markdown and choices.form is None)
        tally = Tally(self._model)
        try:
            with ProgressLine() as line:
                tally.synced(self._session.sync(choice.request.tokens, line.prompt))
            for event in self._session.generate(choice.request.params, choice.request.constraint):
                if isinstance(event, TokenEvent):
                    tally.token()
                self._show(choice, event, display)
                if choice.ended:
                    break
        except KeyboardInterrupt:
            self._show(choice, Finished("length"), display)  # what was held back
            display.notice = _INTERRUPTED
        except EarthshineError:
            if display.begun:  # end the line, which may be dimmed
                display.finish()
            raise
        reply = display.finish()
        if choices.stats:
            say(tally.summary())
        interrupted = display.notice == _INTERRUPTED
        if reply or not interrupted:
            self._messages = [*messages, {"role": "assistant", "content": reply}]
        return not interrupted

    def _show(self, choice: Choice, event: Event, display: Reply) -> None:
        """What the engine's event adds to the reply, and at its end why it is not whole."""
        if not choice.ended:
            choice.push(event)
        for piece in choice.take():
            if isinstance(piece, Delta):
                for text in piece.events:
                    display.show(text)
            elif isinstance(piece, Ended) and piece.reason == "length":
                display.notice = f"stopped after {self.choices.params.max_tokens} tokens{self._incomplete(display)}"
            elif isinstance(piece, Ended) and piece.reason == "context":
                display.notice = f"stopped: the context of {self.room} tokens is full{self._incomplete(display)}"

    def _incomplete(self, display: Reply) -> str:
        return "" if self.choices.form is None or is_json(display.text) else "; the JSON is not complete"


def prompts_for(tokenizer: Tokenizer, template: ChatTemplate, spec: ModelSpec) -> Prompts:
    """For conversations with a model, whose sessions may have less room than its context."""
    return Prompts(tokenizer, template, spec.vocab_size, spec.stop_tokens, spec.max_context)
