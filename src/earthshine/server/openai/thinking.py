"""Whether the model thinks before it answers, and whether it is shown its past thoughts: every client's own words.

Kimi's API says `thinking`, OpenAI's `reasoning_effort`, vLLM's clients chat_template_kwargs. Invariant: what was said
several times was said alike. Refused: contradictions, other variables of a template, and templates of a request.
A model without thoughts takes all of this as meaning nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

from earthshine.server.api import Refused, Served
from earthshine.server.openai.fields import SamplingFields
from earthshine.untrusted import shown

Effort = Annotated[str, StringConstraints(max_length=64)]


class Thinking(BaseModel):
    """Kimi's field. `keep`: "all" keeps the thoughts of past turns in the prompt."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["enabled", "disabled"] | None = None
    keep: Literal["all"] | None = None


class ThinkingFields(SamplingFields):
    """The fields about thoughts that chat and responses share."""

    thinking: Thinking | None = None
    enable_thinking: bool | None = None
    preserve_thinking: bool | None = None
    include_reasoning: bool | None = None  # false: thoughts are not sent
    chat_template_kwargs: dict[str, Any] | None = None
    chat_template: Any = None


def thinking_of(body: ThinkingFields, effort: str | None, served: Served) -> tuple[bool | None, bool]:
    """Whether to think, None for the template's own way, and whether to keep past thoughts. Raises Refused."""
    if body.chat_template is not None:
        raise Refused("A chat template is code and is taken from the model's folder only.", param="chat_template")
    variables = _variables(body.chat_template_kwargs or {})
    said = body.thinking or Thinking()
    thinks = _agreed({
        "thinking": None if said.type is None else said.type == "enabled",
        "enable_thinking": body.enable_thinking,
        "chat_template_kwargs.thinking": variables.get("thinking"),
        "chat_template_kwargs.enable_thinking": variables.get("enable_thinking"),
        "reasoning_effort": False if effort == "none" else None,
    })  # fmt: skip
    keeps = _agreed({
        "thinking.keep": True if said.keep == "all" else None,
        "preserve_thinking": body.preserve_thinking,
        "chat_template_kwargs.preserve_thinking": variables.get("preserve_thinking"),
    })  # fmt: skip
    if not served.thinks:
        return None, False
    if keeps and not served.can_preserve_thinking:
        raise Refused("This model's template can't keep past thoughts; leave preserve_thinking and thinking.keep out.",
                      param="preserve_thinking")  # fmt: skip
    return thinks, bool(keeps)


def _variables(given: dict[str, Any]) -> dict[str, bool]:
    known = ("thinking", "enable_thinking", "preserve_thinking")
    for name, value in given.items():
        if name not in known:
            raise Refused(f"The template gets no {shown(name)} from a request; chat_template_kwargs takes "
                          f"{', '.join(known)}.", param="chat_template_kwargs")  # fmt: skip
        if not isinstance(value, bool | None):
            raise Refused(f"chat_template_kwargs.{name} must be true or false, not {shown(value)}.",
                          param="chat_template_kwargs")  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def _agreed(said: dict[str, bool | None]) -> bool | None:
    """What all those say that say anything."""
    found = {name: value for name, value in said.items() if value is not None}
    if len(set(found.values())) > 1:
        first = next(iter(found))
        other = next(name for name, value in found.items() if value is not found[first])
        raise Refused(f"{first} and {other} contradict each other; give one of them.", param=other)
    return next(iter(found.values()), None)
