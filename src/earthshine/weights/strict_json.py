"""JSON that a checkpoint carries: a safetensors header or a shard index, read without believing any of it.

The invariant: what is returned is one object whose keys are unique at every depth. Refuses anything that is not
UTF-8, repeats a key, writes NaN or Infinity, nests too deeply or is not an object, always as a CheckpointError.
"""

import json
from typing import Any

from earthshine.errors import CheckpointError

_SHOWN_CHARACTERS = 120


def shown(text: str) -> str:
    """An untrusted name for a message: quoted, escaped and cut, so that a terminal can't be misled by it."""
    return ascii(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise CheckpointError(f"the key {shown(repeated)} appears twice")
    return found


def _no_constant(text: str) -> None:
    raise CheckpointError(f"{text} is not JSON")


def read_object(raw: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `raw`; `what` names its source in the CheckpointError that anything else raises."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except CheckpointError as error:
        raise CheckpointError(f"{what} is not sound JSON: {error}.") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{what} is not sound JSON: {type(error).__name__}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} should hold a JSON object, and holds something else.")
    return value
