"""What several commands share: the options for loading a model, and reading text."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from earthshine.cli.progress import ProgressLine
from earthshine.cli.words import SERVE_BATCH
from earthshine.errors import TextError, UsageError
from earthshine.plan import Plan, PlanArgs, read_plan
from earthshine.units import parse_bytes
from earthshine.untrusted import shown

if TYPE_CHECKING:
    from earthshine.engine import LoadedModel

MAX_TEXT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """The options of `earthshine chat`, but for sampling."""

    prompt: str | None
    system: str | None
    thinking: bool
    stop: tuple[str, ...]
    plan: Plan | PlanArgs
    stats: bool = False
    markdown: bool = True
    history: bool = True
    format: str | None = None
    json_schema: str | None = None


def plan_or_args(
    memory: str | None = None,
    context: int | None = None,
    threads: int | None = None,
    trunk: str = "bf16",
    dtype: str = "bf16",
    plan: Path | None = None,
    batch: int = 1,
) -> Plan | PlanArgs:
    """The plan of --plan, or the arguments of a plan from the other options.

    Raises UsageError for options that contradict each other, an invalid size, a context below 2 tokens, and a file that
    is not a plan.
    """
    if context is not None and context < 2:
        raise UsageError(f"context must be at least 2 tokens, not {shown(context)}.", "context")
    memory_bytes = None if memory is None else parse_bytes(memory)
    args = PlanArgs(memory_bytes, context, batch, threads, trunk, dtype)
    if plan is None:
        return args
    if args != PlanArgs():
        raise UsageError(
            "--plan has all options for loading the model; leave out the others, or make the plan again with them "
            f"(earthshine plan MODEL --batch {SERVE_BATCH} --save FILE, for example)."
        )
    return read_plan(plan)


def load_with_progress(folder: Path, plan: Plan | PlanArgs) -> "LoadedModel":
    """Load the model in `folder`, with progress on a terminal."""
    from earthshine.engine import load_model

    with ProgressLine() as line:
        return load_model(folder, plan, line.loading)


def standard_input() -> BinaryIO | None:
    """The bytes of standard input; None where the caller closed it."""
    return None if sys.stdin is None else sys.stdin.buffer


def read_text(file: BinaryIO | None, name: str) -> str:
    """All of `file`, at most 64 MiB of UTF-8. Raises UsageError and TextError; `name` is the file's name in them."""
    if file is None:
        raise UsageError(f"{name} is closed.")
    raw = file.read(MAX_TEXT_BYTES + 1)
    if len(raw) > MAX_TEXT_BYTES:
        raise UsageError(f"{name} has more than {MAX_TEXT_BYTES} bytes, which no context can hold.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"{name} is not UTF-8 text: byte {error.start} can't be decoded.") from None
