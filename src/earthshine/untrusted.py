"""Reads untrusted input: the small files of a model's folder, their JSON, and their names in messages.

A file is read only if it is regular, within the caller's limit and, after links are followed, in the model's folder or
among the blobs of the hub cache that the folder belongs to, wherever these are kept. A JSON object must be UTF-8, at
most 32 levels deep, without repeated keys, and without numbers beyond a float's range. Violations raise the error class
that the caller names. The fields of a file that a person writes raise UsageError, which names file and field.
"""

import codecs
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

from earthshine.errors import EarthshineError, TextError, UsageError

MAX_DEPTH = 32  # published files nest 9 deep
_SHOWN_CHARACTERS = 80  # the longest published tensor name has 72

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # how the hub's cache names a blob

Refusal = type[EarthshineError]


def shown(value: object) -> str:
    """A short ASCII form of an untrusted value in JSON's notation, safe to print on a terminal.

    A Path is given by the user and its end is most informative, so it is escaped but never cut.
    """
    if isinstance(value, Path):
        return ascii(str(value))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 64:
        return "an integer of more than 64 bits"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return ascii(value if len(value) <= _SHOWN_CHARACTERS else value[: _SHOWN_CHARACTERS - 3] + "...")
    if isinstance(value, list) and len(value) <= 4 and not any(isinstance(entry, (dict, list)) for entry in value):
        return "[" + ", ".join(map(shown, value)) + "]"
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    return f"a {type(value).__name__}"


def encodable(text: str, what: str) -> str:
    """The text. Raises TextError, which names it `what`, for half of a surrogate pair, which UTF-8 can't encode.
    Python decodes each byte of its input that is not UTF-8 to one."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(f"{what} is not UTF-8 text: character {error.start} can't be encoded.") from None
    return text


def resolve_in(folder: Path, name: str, refusal: Refusal, *, elsewhere: str = "") -> Path:
    """The real path of `folder/name`, which need not exist. A link that leaves the folder is refused.

    An untrusted folder may have links to private files, whose content would then be read and quoted. Allowed are links
    that can't reveal anything: `snapshots/<revision>/name` of a hub cache to the same repository's `blobs`, which may
    be on another disk; and, if `elsewhere` is given, links to files whose name ends in it, because the caller reads
    only sound files of that kind.
    """
    try:
        home, real = Path(os.path.realpath(folder)), Path(os.path.realpath(folder / name))
    except (OSError, ValueError):
        raise refusal(f"{shown(folder / name)} is not a path.") from None
    blobs = [above.parent / "blobs" for above in home.parents if above.name == "snapshots"]
    roots = [home, *(Path(os.path.realpath(root)) for root in blobs)]
    allowed = any(real.is_relative_to(root) for root in roots) or _moved_blob(home / name, blobs, real)
    if not allowed and not (elsewhere and real.name.endswith(elsewhere)):
        raise refusal(f"{shown(name)} is a link that leaves the model's folder; put the file itself there.")
    return real


def _moved_blob(link: Path, blobs: list[Path], real: Path) -> bool:
    """Whether `link` leads to a blob of its own repository that is a link itself, to a file called by the digest."""
    try:
        blob = Path(os.path.normpath(link.parent / os.readlink(link)))
    except OSError:  # no link
        return False
    return blob.parent in blobs and blob.name == real.name and _DIGEST.fullmatch(real.name) is not None


def real_path(path: Path, refusal: Refusal) -> Path:
    """A path that a person wrote, with links followed. It need not exist; a loop of links is left to its opening."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):
        raise refusal(f"{shown(path)} is not a path.") from None


def open_regular(path: Path, what: str, refusal: Refusal) -> int:
    """A read-only descriptor of a regular file at a resolved path. A pipe is refused at once."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name is not one"
        raise refusal(f"{what} can't be opened: {reason}.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refusal(f"{what} is not a regular file.")
    return descriptor


def read_file(path: Path, what: str, limit_bytes: int, refusal: Refusal) -> bytes:
    """The content of a regular file at a resolved path, of at most `limit_bytes`; `what` names it in messages."""
    try:
        with open(open_regular(path, what, refusal), "rb") as file:
            raw = file.read(limit_bytes + 1)
    except OSError as error:
        raise refusal(f"{what} can't be read: {error.strerror}.") from None
    if len(raw) > limit_bytes:
        raise refusal(f"{what} has more than {limit_bytes} bytes, more than such a file can have.")
    return raw


class _Unsound(ValueError):
    """JSON that Python accepts and this module does not."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Unsound(f"gives the key {shown(repeated)} twice in one object")
    return found


def _no_constant(text: str) -> NoReturn:
    raise _Unsound(f"holds {text}, which is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Unsound(f"holds {text[:20]}, which is beyond the range of a number")
    return value


def parse_object(raw: bytes, what: str, refusal: Refusal) -> dict[str, Any]:
    """The JSON object in `raw`; `what` names its source in messages."""
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
    except _Unsound as error:
        raise refusal(f"{what} {error}.") from None
    except UnicodeDecodeError as error:
        raise refusal(f"{what} is not UTF-8 text: byte {error.start} can't be decoded.") from None
    except json.JSONDecodeError as error:
        raise refusal(f"{what} is not JSON: {_json_problem(raw, error)}.") from None
    except (RecursionError, MemoryError):
        raise refusal(f"{what} nests more than {MAX_DEPTH} levels deep.") from None
    except ValueError:  # an integer of more digits than Python converts
        raise refusal(f"{what} holds a number with too many digits.") from None
    if not isinstance(value, dict):
        raise refusal(f"{what} holds no JSON object.")
    require_depth(value, what, refusal)
    return value


def _json_problem(raw: bytes, error: json.JSONDecodeError) -> str:
    if not raw.strip():
        return "it is empty"
    if raw.startswith(codecs.BOM_UTF8):
        return "it begins with a byte order mark; write it without one"
    return f"{error.msg.removesuffix(' at')} at line {error.lineno}, column {error.colno}"


def require_depth(value: object, what: str, refusal: Refusal) -> None:
    """Refuses lists and objects nested more than MAX_DEPTH levels deep, without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        containers = [entry for entry in level if isinstance(entry, (dict, list))]
        if not containers:
            return
        level = [inner for entry in containers for inner in (entry.values() if isinstance(entry, dict) else entry)]
    raise refusal(f"{what} nests more than {MAX_DEPTH} levels deep.")


def require_keys(found: dict[str, Any], where: str, required: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raises UsageError for a key that is missing or not known."""
    require_present(found, where, required, known)
    unknown = next((key for key in found if key not in known), None)
    if unknown is not None:
        raise UsageError(f"{where} has {shown(unknown)}, which is not known; it may have {', '.join(known)}.")


def require_present(
    found: dict[str, Any], where: str, required: tuple[str, ...], known: tuple[str, ...] | None = None
) -> None:
    """Raises UsageError for a key that is missing; `known`: all that the message names."""
    missing = next((key for key in required if key not in found), None)
    if missing is not None:
        raise UsageError(f"{where} lacks {missing}; it has {', '.join(known or required)}.")


def text_field(found: dict[str, Any], name: str, where: str) -> str:
    """`found[name]`, a line of text; raises UsageError for anything else."""
    value = found[name]
    if not isinstance(value, str) or not 1 <= len(value) <= 1000 or not value.isprintable():
        raise UsageError(f"{where}: {name} is {shown(value)}; it must be a line of text.")
    return value


def number_field(
    found: dict[str, Any], name: str, where: str, least: float, most: float, *, whole: bool = False
) -> float:
    """`found[name]`, a number, if `whole` without a fraction; raises UsageError for anything else."""
    value = found[name]
    if type(value) not in ((int,) if whole else (int, float)) or not least <= value <= most:
        kind = "whole number" if whole else "number"
        raise UsageError(f"{where}: {name} is {shown(value)}; it must be a {kind} from {least:.10g} to {most:.10g}.")
    return float(value)


def flag_field(found: dict[str, Any], name: str, where: str) -> bool:
    """`found[name]`, true or false, and false where it is absent; raises UsageError for anything else."""
    value = found.get(name, False)
    if not isinstance(value, bool):
        raise UsageError(f"{where}: {name} is {shown(value)}; it must be true or false.")
    return value
