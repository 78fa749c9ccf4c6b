"""A plan as a file: indented JSON with sorted keys, one value a line, so that two plans can be compared by `diff`.

A plan that is written reads back as an equal one. Nothing in a file is trusted: every key is required and none is
unknown, every number is checked, and the engine checks again that the parts fit the budget.
"""

import dataclasses
import json
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from earthshine.errors import UsageError
from earthshine.plan.args import DTYPES, MOST_BATCH, MOST_CACHE_TOKENS, MOST_THREADS, TRUNKS
from earthshine.plan.budget import NEW_PLAN, PARTS, PREFILL_TOKENS
from earthshine.plan.plan import Plan
from earthshine.storage import page_count
from earthshine.untrusted import parse_object, read_file, real_path, shown

_ANY_FORMAT = "earthshine plan "
FORMAT = f"{_ANY_FORMAT}2"
_MAX_BYTES = 1 << 20
_MOST = 1 << 60


def plan_json(plan: Plan) -> str:
    """What `read_plan` reads back."""
    return json.dumps({"format": FORMAT, **dataclasses.asdict(plan)}, indent=2, sort_keys=True) + "\n"


def read_plan(path: Path) -> Plan:
    """The plan in `path`. Raises UsageError, which names the file, the field and what would be right."""
    where = shown(path)
    found = parse_object(read_file(real_path(path, UsageError), where, _MAX_BYTES, UsageError), where, UsageError)
    saved_as = found.pop("format", None)
    if saved_as != FORMAT:
        if isinstance(saved_as, str) and saved_as.startswith(_ANY_FORMAT):
            raise UsageError(f"{where} is a plan of another version ({shown(saved_as)}, not {FORMAT!r}); {NEW_PLAN}.")
        raise UsageError(f"{where} is not a plan; its format must be {FORMAT!r}; {NEW_PLAN}.")
    plan: Plan = _built(Plan, found, where)
    for name, value, choices in (("trunk", plan.trunk, TRUNKS), ("dtype", plan.dtype, DTYPES)):
        if value not in choices:
            raise UsageError(f"{where}: {name} is {shown(value)}; it must be one of {', '.join(choices)}.")
    memory = plan.memory
    for name, number, least, most in (
        ("threads", plan.threads, 1, MOST_THREADS),
        ("memory.batch", memory.batch, 1, MOST_BATCH),
        ("memory.context_tokens", memory.context_tokens, 1, 1 << 31),
        ("memory.pages", memory.pages, page_count(memory.context_tokens), page_count(MOST_CACHE_TOKENS)),
        ("memory.prefill_tokens", memory.prefill_tokens, 1, PREFILL_TOKENS[1]),
    ):
        if not least <= number <= most:
            raise UsageError(f"{where}: {name} is {number}; it must be {least} to {most}.")
    if sorted(memory.parts) != sorted(PARTS):
        raise UsageError(f"{where}: memory.parts must be {', '.join(PARTS)}; {NEW_PLAN}.")
    if memory.planned_bytes > memory.budget_bytes:
        raise UsageError(
            f"{where}: memory.parts add up to {memory.planned_bytes}, more than memory.budget_bytes, "
            f"{memory.budget_bytes}; {NEW_PLAN}."
        )
    return plan


def _built(kind: Any, value: Any, where: str) -> Any:
    """`value` from JSON as a value of the annotated type `kind`."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _built_dataclass(kind, value, where)
    origin = get_origin(kind)
    if origin is UnionType:
        inner = next(arg for arg in get_args(kind) if arg is not NoneType)
        return None if value is None else _built(inner, value, where)
    if origin is tuple:
        return tuple(_built(get_args(kind)[0], item, where) for item in _of(list, value, where))
    if origin is not None:  # a Mapping from names
        inner = get_args(kind)[1]
        return {name: _built(inner, item, f"{where}.{shown(name)}") for name, item in _of(dict, value, where).items()}
    if kind is float:
        if type(value) not in (int, float) or not 0 <= value <= sys.float_info.max:  # of an integer too
            raise UsageError(f"{where} is {shown(value)}; it must be a number of 0 or more.")
        return float(value)
    if kind is int and not (type(value) is int and 0 <= value <= _MOST):
        raise UsageError(f"{where} is {shown(value)}; it must be a whole number from 0 to {_MOST} (2^60).")
    return _of(kind, value, where)


def _built_dataclass(kind: type, value: Any, where: str) -> Any:
    found = _of(dict, value, where)
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    for name in names:
        if name not in found:
            raise UsageError(f"{where} lacks {name}; {NEW_PLAN}.")
    for name in found:
        if name not in names:
            raise UsageError(f"{where} has {shown(name)}, which is not a field of a plan; {NEW_PLAN}.")
    return kind(**{name: _built(hints[name], found[name], f"{where}: {name}") for name in names})


def _of(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:
        names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a whole number"}
        raise UsageError(f"{where} is {shown(value)}; it must be {names[kind]}.")
    return value
