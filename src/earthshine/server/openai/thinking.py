"""Fields about thinking: whether and how long the model thinks before it answers, and which thoughts are sent.

Kimi's API has `thinking`, OpenAI's `reasoning_effort`, OpenRouter's `reasoning`, Ollama's `think`, and clients of vLLM
use chat_template_kwargs. An effort of "none" turns thinking off; others are ignored, since these models' templates have
no levels. Where thinking is turned off, the prompt of every model that thinks ends in a closed thought (text/chat.py).
Refused: fields that contradict each other, other variables of a template, and templates in a request. For a model
without thoughts all of these fields are ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from earthshine.server.api import Served
from earthshine.server.openai.fields import SamplingFields
from earthshine.server.refusals import Refused
from earthshine.untrusted import shown

Effort = Annotated[str, StringConstraints(max_length=64)]
_Value = TypeVar("_Value", bound=int)
_Budget = Annotated[int, Field(ge=0)]  # the most tokens of a thought


class Reasoning(BaseModel):
    """OpenAI's field with OpenRouter's additions. Thoughts are sent whole and are not summarized."""

    model_config = ConfigDict(extra="ignore", strict=True)

    effort: Effort | None = None
    enabled: bool | None = None
    exclude: bool | None = None  # thoughts are not sent
    max_tokens: _Budget | None = None


class Thinking(BaseModel):
    """Kimi's field. `keep`: "all" keeps the thoughts of past messages in the prompt."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["enabled", "disabled"] | None = None
    keep: Literal["all"] | None = None
    budget_tokens: _Budget | None = None


class ThinkingFields(SamplingFields):
    """The fields about thinking that chat and responses share."""

    thinking: Thinking | None = None
    think: bool | Effort | None = None  # Ollama's; any effort but none turns thinking on
    enable_thinking: bool | None = None
    preserve_thinking: bool | None = None
    thinking_token_budget: _Budget | None = None
    include_reasoning: bool | None = None  # false: thoughts are not sent
    chat_template_kwargs: dict[str, Any] | None = None
    chat_template: Any = None


@dataclass(frozen=True, slots=True)
class Thoughts:
    """`thinking`: None for the template's default; `preserved`: thoughts of past messages stay in the prompt; `shown`:
    thoughts are sent; `most_tokens`: None for no limit."""

    thinking: bool | None
    preserved: bool
    shown: bool
    most_tokens: int | None


def thoughts_of(
    body: ThinkingFields, reasoning: Reasoning | None, served: Served, effort: str | None = None
) -> Thoughts:
    """What all fields together ask for. Raises Refused."""
    if body.chat_template is not None:
        raise Refused("A chat template is code and is taken from the model's folder only.", param="chat_template")
    reasoning, kimi = reasoning or Reasoning(), body.thinking or Thinking()
    variables = _variables(body.chat_template_kwargs or {})
    thinks = _agreed({
        "thinking": None if kimi.type is None else kimi.type == "enabled",
        "think": body.think if body.think is None else body.think not in (False, "", "none"),
        "enable_thinking": body.enable_thinking,
        "chat_template_kwargs.thinking": variables.get("thinking"),
        "chat_template_kwargs.enable_thinking": variables.get("enable_thinking"),
        "reasoning_effort": False if effort == "none" else None,
        "reasoning.effort": False if reasoning.effort == "none" else None,
        "reasoning.enabled": reasoning.enabled,
    })  # fmt: skip
    keeps = _agreed({
        "thinking.keep": True if kimi.keep == "all" else None,
        "preserve_thinking": body.preserve_thinking,
        "chat_template_kwargs.preserve_thinking": variables.get("preserve_thinking"),
    })  # fmt: skip
    most = _agreed({
        "thinking_token_budget": body.thinking_token_budget,
        "thinking.budget_tokens": kimi.budget_tokens,
        "reasoning.max_tokens": reasoning.max_tokens,
    })  # fmt: skip
    hides = reasoning.exclude is True or body.include_reasoning is False
    if not served.thinks:
        return Thoughts(None, False, not hides, most)  # some models think though their template does not show it
    if keeps and not served.can_preserve_thinking:
        raise Refused("This model's template can't keep past thoughts; leave preserve_thinking and thinking.keep out.",
                      param="preserve_thinking")  # fmt: skip
    return Thoughts(thinks, bool(keeps), not hides, most)


def _variables(given: dict[str, Any]) -> dict[str, bool]:
    known = ("thinking", "enable_thinking", "preserve_thinking")
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if name not in known:
            raise Refused(f"The template's variable {shown(name)} can't be set; chat_template_kwargs takes "
                          f"{', '.join(known)}.", param="chat_template_kwargs")  # fmt: skip
        if not isinstance(value, bool):
            raise Refused(f"chat_template_kwargs.{name} must be true or false, not {shown(value)}.",
                          param="chat_template_kwargs")  # fmt: skip
    return given


def _agreed(given: Mapping[str, _Value | None]) -> _Value | None:
    """The value that all given fields agree on; None where none is given."""
    found = {name: value for name, value in given.items() if value is not None}
    if len(set(found.values())) > 1:
        first = next(iter(found))
        other = next(name for name, value in found.items() if value != found[first])
        raise Refused(f"{first} and {other} contradict each other; give one of them.", param=other)
    return next(iter(found.values()), None)
