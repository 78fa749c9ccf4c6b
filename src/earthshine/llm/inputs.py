"""Checks the arguments of `LLM` and converts them to the fields of a GenerationRequest."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from earthshine.engine import SamplingParams
from earthshine.errors import UsageError
from earthshine.generation.request import Format, ToolChoice
from earthshine.plan import PlanArgs
from earthshine.units import parse_bytes, plain_bytes
from earthshine.untrusted import encodable, parse_object, shown

Params = SamplingParams | Sequence[SamplingParams] | None

_MOST_MEMORY = 1 << 63  # bytes
_UNREAD = ("multi_modal_data", "prompt_embeds")  # parts of a prompt in vLLM's form that are not supported

_INSTEAD = {  # options of vLLM's LLM that this one does not have, with what to do instead
    "max_model_len": "use context",
    "max_num_seqs": "use batch",
    "gpu_memory_utilization": 'use memory, such as "16GiB"',
    "tensor_parallel_size": "a model is not split; leave it out",
    "pipeline_parallel_size": "a model is not split; leave it out",
    "quantization": "the format is the checkpoint's own; leave it out",
    "trust_remote_code": "a model's code is never run; leave it out",
    "seed": "give seed to SamplingParams",
    "tokenizer": "the model's own is used; leave it out",
    "revision": "give the folder of a snapshot as model",
}


def require_known(named: Iterable[str], known: Sequence[str]) -> None:
    """Raises UsageError, which names ours, for an option that LLM does not have."""
    for name in named:
        if name not in known:
            instead = _INSTEAD.get(name, f"it has {', '.join(known)}")
            raise UsageError(f"LLM has no option {name}: {instead}.", name)


def plan_args(
    memory: str | int | None, context: int | None, batch: int, threads: int | None, trunk: str, dtype: str
) -> PlanArgs:
    """The arguments of `make_plan`, which checks their values. Raises UsageError for values of other types."""
    for name, value in (("memory", memory), ("context", context), ("batch", batch), ("threads", threads)):
        optional, text = name != "batch", name == "memory" and isinstance(value, str)
        if not (text or _is_integer(value) or (optional and value is None)):
            form = 'a size such as "16GiB" or a number of bytes' if name == "memory" else "a whole number"
            raise UsageError(f"{name} must be {form}, not {shown(value)}.", name)
    if isinstance(memory, int) and not 0 <= memory < _MOST_MEMORY:
        raise UsageError(f"memory must be 0 or more bytes and less than 8 EiB, not {shown(memory)}.", "memory")
    memory_bytes = parse_bytes(memory) if isinstance(memory, str) else memory and plain_bytes(memory)
    return PlanArgs(memory_bytes, context, batch, threads, trunk, dtype)


def path_of(name: str, given: object) -> Path:
    """The path. Raises UsageError for what is neither a text nor a path."""
    if not isinstance(given, str | Path):
        raise UsageError(f"{name} must be a text or a path, not {shown(given)}.", name)
    return Path(given)


def require_encodable(value: object, where: str) -> None:
    """Raises TextError, which names the place, for half of a surrogate pair in a text of `value` at any depth."""
    if isinstance(value, str):
        encodable(value, where)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            require_encodable(key, f"A key of {where}")
            require_encodable(inner, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            require_encodable(inner, f"{where}[{index}]")


def flag_of(name: str, given: object) -> bool:
    """The flag. Raises UsageError for anything but True and False."""
    if not isinstance(given, bool):
        raise UsageError(f"{name} must be True or False, not {shown(given)}.", name)
    return given


def params_of(given: Params, n_prompts: int, defaults: SamplingParams) -> list[SamplingParams]:
    """One for each prompt. Raises UsageError for other types, and for a list of another length."""
    if given is None or isinstance(given, SamplingParams):
        require_encodable((given or defaults).stop, "stop")
        return [given or defaults] * n_prompts
    if not isinstance(given, Sequence) or not all(isinstance(each, SamplingParams) for each in given):
        raise UsageError("sampling_params must be SamplingParams, or a list of one for each prompt.", "sampling_params")
    if len(given) != n_prompts:
        raise UsageError(f"There are {n_prompts} prompts and {len(given)} sampling_params; give one for each, or one.")
    for each in given:
        require_encodable(each.stop, "stop")
    return list(given)


def is_one_prompt(prompts: Any) -> bool:
    """Whether `prompts` is a single prompt, not a list of prompts. Raises UsageError for anything else."""
    if isinstance(prompts, str | Mapping):
        return True
    if not _is_list(prompts):
        raise UsageError(f"prompts must be a text, token ids or a list of them, not {shown(prompts)}.", "prompts")
    return bool(prompts) and isinstance(prompts[0], int)


def prompt_of(prompt: Any) -> str | list[int]:
    """The text or token ids of a prompt in any of its forms. Raises UsageError for anything else, and TextError for a
    text that UTF-8 can't encode."""
    if isinstance(prompt, Mapping):
        unread = [key for key in _UNREAD if prompt.get(key)]
        if unread:
            raise UsageError(f"A prompt's {unread[0]} can't be read; give text or token ids.", "prompts")
        given, ids = prompt, prompt.get("prompt_token_ids")
        prompt = prompt.get("prompt") if ids is None else ids
        if prompt is None:
            raise UsageError(
                "A prompt given as a dict must have prompt or prompt_token_ids; "
                f"this one has {', '.join(map(shown, given)) or 'no keys'}.",
                "prompts",
            )
    if isinstance(prompt, str):
        return encodable(prompt, "A prompt")
    if _is_list(prompt) and all(map(_is_integer, prompt)):
        return list(prompt)
    raise UsageError(f"A prompt must be a text or token ids, not {shown(prompt)}.", "prompts")


def tools_of(given: Any) -> tuple[Any, ...]:
    """The declared tools, none for None. Raises UsageError for what is not a list, and TextError for a text in it that
    UTF-8 can't encode. Tools themselves are checked with the prompts."""
    if given is not None and not _is_list(given):
        raise UsageError(f"tools must be a list of objects, not {shown(given)}.", "tools")
    require_encodable(given, "tools")
    return tuple(given or ())


def conversation_of(given: Any) -> list[dict[str, Any]]:
    """A copy of a conversation's messages. Raises UsageError for anything but a list of them, and TextError for a text
    in it that UTF-8 can't encode."""
    require_encodable(given, "messages")
    if not given or not _is_list(given) or not all(isinstance(message, Mapping) for message in given):
        raise UsageError("A conversation is a list of messages such as {'role': 'user', 'content': 'Hello'}.")
    return [dict(message) for message in given]


def tool_choice_of(choice: str, tools: Sequence[Mapping[str, Any]]) -> ToolChoice:
    """From "auto", "none", "required" or a function's name. Raises UsageError for a function that is not in `tools`."""
    if choice in ("auto", "none", "required"):
        if choice == "required" and not tools:
            raise UsageError('tool_choice "required" needs tools to choose from.', "tool_choice")
        return ToolChoice(choice)  # type: ignore[arg-type]
    if not isinstance(choice, str):
        raise UsageError(
            f'tool_choice must be "auto", "none", "required" or a function\'s name, not {shown(choice)}.', "tool_choice"
        )
    names = list(map(_name_of, tools))
    if choice not in names:
        there = f"tools are {', '.join(map(shown, names))}" if names else "no tools are given"
        raise UsageError(f"There is no tool {shown(choice)} to choose; {there}.", "tool_choice")
    return ToolChoice("named", choice)


def format_of(given: Mapping[str, Any] | None) -> Format | None:
    """`structured_outputs` as a Format. Schemas and grammars themselves are checked where they are compiled."""
    if given is None:
        return None
    match dict(given) if isinstance(given, Mapping) else None:
        case {"json": str() as text, **rest} if not rest:
            return Format("json_schema", parse_object(encodable(text, "The schema").encode(), "The schema", UsageError))
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


def _name_of(tool: object) -> object:
    """A tool's name, if it has one. Tools themselves are checked with the prompts."""
    function = tool.get("function") if isinstance(tool, Mapping) else None
    return function.get("name") if isinstance(function, Mapping) else None


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: object) -> bool:
    """Whether it is a sequence that may hold prompts or token ids; bytes and texts are not."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)
