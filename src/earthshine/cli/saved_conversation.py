"""A conversation as a file: versioned JSON, written whole with mode 600, and believed no more than a stranger's file.

A file that is no saved conversation is never written over. Keys that this version does not know are left out.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earthshine.errors import TextError, UsageError
from earthshine.files import written_whole
from earthshine.text.messages import check_messages
from earthshine.untrusted import parse_object, read_file, real_path, shown

_ANY_FORMAT = "earthshine conversation "
FORMAT = f"{_ANY_FORMAT}1"
ROLES = ("system", "user", "assistant")
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class SavedConversation:
    """`model` is the name that a person used, `model_id` the same for all copies of a model; `settings` as `/set` names
    them."""

    model: str
    model_id: str
    messages: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)


def save_conversation(path: Path, saved: SavedConversation, *, replace: bool) -> None:
    """Raises UsageError where the file can't be written, and for one that is there already unless `replace` holds."""
    if os.path.lexists(path) and not replace:
        raise UsageError(f"{shown(path)} exists already; choose another name, or delete it first.")
    model = {"name": saved.model, "id": saved.model_id}
    content = {"format": FORMAT, "model": model, "settings": saved.settings, "messages": saved.messages}
    try:
        with written_whole(path) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())
    except (OSError, ValueError) as error:  # a name may hold what no name can
        reason = error.strerror if isinstance(error, OSError) else "its name is not one"
        raise UsageError(f"{shown(path)} can't be written: {reason}. The conversation is not saved.") from None


def load_conversation(path: Path) -> SavedConversation:
    """Raises UsageError that names the file and what is wrong in it."""
    where = shown(path)
    found = parse_object(read_file(real_path(path, UsageError), where, _MOST_BYTES, UsageError), where, UsageError)
    _require_format(found.get("format"), where)
    model, settings, messages = found.get("model"), found.get("settings", {}), found.get("messages")
    if not isinstance(model, dict) or not all(isinstance(model.get(key), str) for key in ("name", "id")):
        raise UsageError(f"{where} is damaged: its model must be an object with a name and an id.")
    if not isinstance(settings, dict):
        raise UsageError(f"{where} is damaged: its settings must be an object.")
    if not isinstance(messages, list):
        raise UsageError(f"{where} is damaged: its messages must be a list.")
    kept = [_message(message, f"{where} is damaged: message {number}") for number, message in enumerate(messages)]
    if kept:
        try:
            check_messages(kept)
        except TextError as error:
            raise UsageError(f"{where} can't be used. {error}") from None
    return SavedConversation(model["name"], model["id"], kept, settings)


def _require_format(found: object, where: str) -> None:
    if found == FORMAT:
        return
    if isinstance(found, str) and found.startswith(_ANY_FORMAT):
        raise UsageError(
            f"{where} was saved by another version of Earthshine ({shown(found)}); this one reads {FORMAT!r}."
        )
    raise UsageError(f"{where} is not a saved conversation; its format must be {FORMAT!r}. /save writes one.")


def _message(message: object, what: str) -> dict[str, Any]:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(message, dict) or role not in ROLES:
        raise UsageError(f"{what} must be an object with a role among {', '.join(ROLES)}.")
    content = message.get("content")
    if not isinstance(content, str):
        raise UsageError(f"{what} must have a text as its content.")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} holds half of a character.") from None
    return {"role": role, "content": content}
