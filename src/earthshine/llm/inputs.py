"""What callers of `LLM` may pass, in its several forms, as the fields of a GenerationRequest."""

from collections.abc import Mapping, Sequence
from typing import Any

from earthshine.errors import UsageError
from earthshine.generation.request import Format, ToolChoice
from earthshine.untrusted import parse_object, shown


def is_one_prompt(prompts: object) -> bool:
    """Whether `prompts` is one prompt and no list of them. Raises UsageError for neither."""
    if isinstance(prompts, str | Mapping):
        return True
    if not isinstance(prompts, Sequence):
        raise UsageError(f"prompts must be a text, token ids or a list of them, not {shown(prompts)}.", "prompts")
    return bool(prompts) and isinstance(prompts[0], int)


def prompt_of(prompt: object) -> str | list[int]:
    """The text or token ids of a prompt in any of its forms. Raises UsageError for anything else."""
    if isinstance(prompt, Mapping):
        prompt = prompt.get("prompt_token_ids", prompt.get("prompt"))
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence) and all(isinstance(token, int) and not isinstance(token, bool) for token in prompt):
        return list(prompt)
    raise UsageError(f"A prompt must be a text or token ids, not {shown(prompt)}.", "prompts")


def tool_choice_of(choice: str, tools: Sequence[Mapping[str, Any]]) -> ToolChoice:
    """ "auto", "none", "required" or a function's name. Raises UsageError for a tool that is not there."""
    if choice in ("auto", "none", "required"):
        if choice == "required" and not tools:
            raise UsageError('tool_choice "required" needs tools to choose from.', "tool_choice")
        return ToolChoice(choice)  # type: ignore[arg-type]
    names = [tool.get("function", {}).get("name") for tool in tools]
    if choice not in names:
        raise UsageError(
            f"There is no tool {shown(choice)} to choose; tools are {', '.join(map(str, names))}.", "tool_choice"
        )
    return ToolChoice("named", choice)


def format_of(given: Mapping[str, Any] | None) -> Format | None:
    """`structured_outputs` as a Format; what a schema or grammar itself may say is checked with the prompts."""
    if given is None:
        return None
    match dict(given):
        case {"json": str() as text, **rest} if not rest:
            return Format("json_schema", parse_object(text.encode("utf-8", "replace"), "The schema", UsageError))
        case {"json": dict() as schema, **rest} if not rest:
            return Format("json_schema", schema)
        case {"json_object": True, **rest} if not rest:
            return Format("json_object")
        case {"regex": str() as text, **rest} if not rest:
            return Format("regex", text)
        case {"grammar": str() as text, **rest} if not rest:
            return Format("grammar", text)
        case {"choice": [*texts], **rest} if not rest and texts and all(isinstance(text, str) for text in texts):
            return Format("choice", texts)
    raise UsageError(
        'structured_outputs must be one of {"json": schema}, {"json_object": True}, {"regex": text}, '
        f'{{"grammar": text}} and {{"choice": [text, ...]}}, not {shown(given)}.',
        "structured_outputs",
    )
