"""A request that belongs to no API, and the pieces of its answer.

Each API translates its own request to a `GenerationRequest`, and pieces to its own events. Everything between the two
is the same for all APIs and for `LLM`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from earthshine.engine import PromptProgress, SamplingParams
from earthshine.text import Event as TextEvent

Messages = list[dict[str, Any]]  # in OpenAI's form, as text.ChatTemplate takes them


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`name`: the function that must be called, for "named"."""

    kind: Literal["auto", "none", "required", "named"] = "auto"
    name: str = ""


@dataclass(frozen=True, slots=True)
class Format:
    """What the answer must be. `value`: a JSON schema for json_schema, a text for regex and grammar (Lark), a list of
    texts for choice, None for json_object. `strict`: every keyword of a schema is enforced or refused; without it some
    are descriptions only."""

    kind: Literal["json_object", "json_schema", "regex", "grammar", "choice"]
    value: Any = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What is to be answered, and how.

    `prompt`: messages; or a text or token ids to complete. `tools` have OpenAI's form, {"type": "function",
    "function": {"name", "description", "parameters", "strict"}}. `left_out`: types of the client's tools that this
    server can't run; `unenforced`: tools whose grammar is shown to the model but not enforced; both are logged.
    """

    prompt: Messages | str | list[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    tools: Sequence[dict[str, Any]] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    thinking: bool | None = None  # None: as the template does by default
    preserve_thinking: bool = False
    thinking_tokens: int | None = None  # the most that a thought may have; None: no limit
    continue_final_message: bool = False  # the last message is the assistant's and is to be continued
    format: Format | None = None
    priority: int = 0  # lower ones are computed first
    cache_salt: str = ""  # only requests with the same salt share pages
    echo: bool = False  # completions: the answer begins with the prompt
    prompt_only: bool = False  # with echo: nothing is generated
    left_out: Sequence[str] = ()
    unenforced: Sequence[str] = ()

    @property
    def is_conversation(self) -> bool:
        """Whether the prompt is a list of messages."""
        return isinstance(self.prompt, list) and bool(self.prompt) and isinstance(self.prompt[0], dict)

    @property
    def offered_tools(self) -> Sequence[dict[str, Any]]:
        """The tools that the template gets: none for tool_choice none, since templates have no other way to say it."""
        return () if self.tool_choice.kind == "none" else self.tools


@dataclass(frozen=True, slots=True)
class Scored:
    """A token with its log-probability (None for a prompt's first token). `top`: (id, text, logprob), best first."""

    token: int
    raw: bytes
    logprob: float | None
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The first piece: the prompt was admitted. `cached_tokens`: tokens of the prompt found in the prefix cache."""

    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Reading:
    """How far a prompt is. `choice`: the first of the choices that share it."""

    choice: int
    progress: PromptProgress


@dataclass(frozen=True, slots=True)
class Delta:
    """More of choice `choice`: events of its text, and its tokens where log-probabilities were asked for.
    `completion_tokens`: tokens of the choice generated so far."""

    choice: int
    events: Sequence[TextEvent]
    tokens: Sequence[Scored] = ()
    completion_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Ended:
    """The last piece of choice `choice`. `reason`: "stop": the model ended it, or `stop_text` came; "tool_calls": the
    model ended it after at least one complete call; "length": max_tokens; "context": the context is full."""

    choice: int
    reason: Literal["stop", "length", "context", "tool_calls"]
    completion_tokens: int
    reasoning_tokens: int
    stop_text: str | None = None


Piece = Started | Reading | Delta | Ended
