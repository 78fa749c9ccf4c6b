"""A request in no API's words, and the pieces of its answer.

Each API translates its own request to a `GenerationRequest`, and pieces to its own events. Between them stands one
implementation of everything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from earthshine.engine import SamplingParams
from earthshine.text import Event as TextEvent

Messages = list[dict[str, Any]]  # in OpenAI's form, as text.ChatTemplate takes them


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`name` is of the function that must be called, for "named"."""

    kind: Literal["auto", "none", "required", "named"] = "auto"
    name: str = ""


@dataclass(frozen=True, slots=True)
class Format:
    """What the answer must be: `value` is a JSON schema for json_schema, a text for regex and grammar (Lark), a list of
    texts for choice, None for json_object. `strict`: all of a schema binds, also what is an annotation elsewhere."""

    kind: Literal["json_object", "json_schema", "regex", "grammar", "choice"]
    value: Any = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What is to be answered, and how.

    `prompt`: messages; or a text or token ids, which are completed. `tools` have OpenAI's form, {"type": "function",
    "function": {"name", "description", "parameters", "strict"}}. `left_out`: types of tools that the client gave and
    that can't be run; `unenforced`: tools whose grammar is only shown to the model; both for the log.
    """

    prompt: Messages | str | list[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    tools: Sequence[dict[str, Any]] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    thinking: bool | None = None
    preserve_thinking: bool = False
    thinking_tokens: int | None = None  # at most, where the answer has a thought
    continue_final_message: bool = False  # the last message is the assistant's and is to be continued
    format: Format | None = None
    priority: int = 0  # lower comes first
    cache_salt: str = ""  # requests with another salt share no pages
    echo: bool = False  # completions: the prompt comes first
    prompt_only: bool = False  # with echo: nothing is generated
    left_out: Sequence[str] = ()
    unenforced: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Scored:
    """A token with its log-probability; None for the first one of a prompt. `top`: (id, text, logprob), best first."""

    token: int
    raw: bytes
    logprob: float | None
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The first piece: prompts are admitted. `cached_tokens` of `prompt_tokens` were found and not computed."""

    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """More of choice `choice`: events of its text, and its tokens where log-probabilities were asked for."""

    choice: int
    events: Sequence[TextEvent]
    tokens: Sequence[Scored] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """The last piece of choice `choice`. "tool_calls": it ended by itself after at least one complete call; "stop": by
    itself, or at `stop_text`; "length": at max_tokens; "context": the context is full."""

    choice: int
    reason: Literal["stop", "length", "context", "tool_calls"]
    completion_tokens: int
    reasoning_tokens: int
    stop_text: str | None = None


Piece = Started | Delta | Ended
