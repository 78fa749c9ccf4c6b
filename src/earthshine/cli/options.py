"""What several commands take in the same way: how a model is held, and text."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from earthshine.cli.progress import ByteProgress
from earthshine.engine import LoadedModel, load_model
from earthshine.errors import TextError, UsageError
from earthshine.plan import Plan, PlanArgs, read_plan
from earthshine.units import parse_bytes
from earthshine.untrusted import shown

MAX_TEXT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Holding:
    """What a person said about how to hold a model: the options of every command that loads one. `batch` conversations
    computed at once share pages for `cache_tokens`, as in plan.PlanArgs."""

    dtype: str = "bf16"
    memory: str | None = None
    threads: int | None = None
    trunk: str = "bf16"
    context: int | None = None
    plan: Path | None = None
    batch: int = 1
    cache_tokens: int | None = None

    def plan_args(self) -> PlanArgs:
        """Raises UsageError for a size that is none, and for a context without room for an answer."""
        if self.context is not None and self.context < 2:
            raise UsageError(f"A context of {shown(self.context)} tokens is not possible; give 2 or more.")
        memory = None if self.memory is None else parse_bytes(self.memory)
        return PlanArgs(
            memory, self.context, self.batch, self.threads, self.trunk, self.dtype, cache_tokens=self.cache_tokens
        )

    def planned(self) -> Plan | PlanArgs:
        """The saved plan of --plan, or what the other options ask of a plan to be made."""
        if self.plan is None:
            return self.plan_args()
        if self != Holding(plan=self.plan):
            raise UsageError("--plan says all about how the model is held; leave out the other options about that.")
        return read_plan(self.plan)

    def load(self, folder: Path) -> LoadedModel:
        """The model in `folder`; where it takes a while, a terminal sees how far it is."""
        with ByteProgress() as progress:
            return load_model(folder, self.planned(), progress.report)


def standard_input() -> BinaryIO | None:
    """The bytes of standard input; None where the caller closed it."""
    return None if sys.stdin is None else sys.stdin.buffer


def read_text(file: BinaryIO | None, name: str) -> str:
    """All of `file`, at most 64 MiB of UTF-8; raises UsageError and TextError, which call it `name`."""
    if file is None:
        raise UsageError(f"{name} is closed.")
    raw = file.read(MAX_TEXT_BYTES + 1)
    if len(raw) > MAX_TEXT_BYTES:
        raise UsageError(f"{name} holds more than {MAX_TEXT_BYTES} bytes, more than any context.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"{name} is not UTF-8 text: byte {error.start} can't be decoded.") from None
