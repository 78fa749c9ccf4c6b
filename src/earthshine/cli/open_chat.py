"""Opens the conversation of `earthshine chat`: the model is found and loaded, and greets with what it will be like.

Options that are invalid, and formats that replies can't be held to, are refused before the model is loaded.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from earthshine.cli.answer_format import asked_format
from earthshine.cli.conversation import Choices, Conversation, prompts_for
from earthshine.cli.models import announce_download
from earthshine.cli.options import ChatOptions
from earthshine.cli.progress import ProgressLine
from earthshine.cli.this_machine import this_machine
from earthshine.engine import LoadedModel, SamplingParams, load_model, sampling_defaults
from earthshine.errors import UsageError
from earthshine.hub import GLEAM, Pending, find_readable
from earthshine.plan import Forecaster, Load, sizes_of
from earthshine.spec import load_spec
from earthshine.text import load_template
from earthshine.units import format_duration
from earthshine.untrusted import shown

_SHORT, _LONG = 32, 4096  # tokens of a question, and of one with a text
_QUICK_SECONDS = 5.0  # a first token that comes sooner needs no warning
_GLEAM = (
    "It is a small model that turns a task into a shell command. It knows the tasks that it was trained on; most other "
    'words, also "Hi", get nonsense. Try: list all files, including hidden ones. Each question is sent to it without '
    "the earlier ones, which mislead it; /set multi_turn on sends them too."
)


def open_conversation(
    model: str | None, options: ChatOptions, sampling: dict[str, Any], line: ProgressLine
) -> tuple[Conversation, str]:
    """The conversation, and its greeting."""

    def announce(pending: Pending) -> None:
        line.clear()
        announce_download(pending)

    SamplingParams(**sampling, stop=options.stop)
    form = asked_format(options.format, options.json_schema)
    folder, tokenizer = find_readable(model, announce)
    template = load_template(folder)
    params = replace(sampling_defaults(folder), **sampling, stop=options.stop)
    prompts = prompts_for(tokenizer, template, load_spec(folder))
    if form is not None:
        prompts.check(form)
    shown_as = (options.thinking, options.markdown, options.stats)
    choices = Choices(params, options.system, *shown_as, form, multi_turn=not _is_gleam(folder))
    loaded = load_model(folder, options.plan, line.loading)
    name = model or "gleam"
    conversation = Conversation(loaded, name, tokenizer, template, choices, prompts)
    return conversation, greeting(name, loaded, folder)


def greeting(name: str, loaded: LoadedModel, folder: Path) -> str:
    """How to ask and to end; what to expect of gleam; the wait for a first token where that is long."""
    lines = [f"{shown(name)[1:-1]}: ask a question. /help lists the commands, /bye or Ctrl-D ends."]
    if _is_gleam(folder):
        lines.append(_GLEAM)
    return "\n".join([*lines, *first_wait(loaded, folder)])


def _is_gleam(folder: Path) -> bool:
    return folder.resolve() == GLEAM


def first_wait(loaded: LoadedModel, folder: Path) -> list[str]:
    """A line that forecasts the wait for the first token and the speed after it; none for a quick model."""
    try:
        machine, estimated = this_machine(folder)
    except UsageError:  # no home folder, or a damaged profile: no reason against a chat
        return []
    plan = loaded.plan
    sizes = sizes_of(loaded.spec, plan.dtype, plan.trunk)
    costs = Forecaster(loaded.spec, sizes, plan.memory, machine, plan.trunk)
    short = costs.prompt(_SHORT).seconds
    if short < _QUICK_SECONDS:
        return []
    rate = costs.decode(Load(_SHORT)).tokens_per_second
    line = f"By the forecast, the first token of a short question comes after about {_about(short)}"
    if plan.memory.context_tokens > _LONG:
        line += f", of one of {_LONG} tokens after about {_about(costs.prompt(_LONG).seconds)}"
    line += f"; then {rate:.2g} tokens per second."
    return [f"{line} {estimated} earthshine bench machine measures it." if estimated else line]


def _about(seconds: float) -> str:
    return format_duration(float(f"{seconds:.2g}"), rough=True)
