"""The form that replies are held to in a chat: any text, a JSON object, or JSON that fits a schema.

A schema is given as its text or as a file. Refused by name: what is neither, and what is not a JSON object. Whether a
schema can be enforced shows where it is compiled.
"""

import json
import os
from pathlib import Path

from earthshine.cli.terminal import decoded
from earthshine.errors import UsageError
from earthshine.generation.request import Format
from earthshine.settings import expanded
from earthshine.untrusted import encodable, parse_object, read_file, shown

FORMATS = ("text", "json")
_MOST_BYTES = 1 << 20


def format_named(name: str) -> Format | None:
    """From "text" or "json". Raises UsageError."""
    if name not in FORMATS:
        raise UsageError(f"format must be text or json, not {shown(name)}; json-schema takes a schema.", "format")
    return Format("json_object") if name == "json" else None


def format_of_schema(given: str) -> Format:
    """From a schema's text, which begins with a brace, or its file. Raises UsageError."""
    text = given.strip()
    if text.startswith("{"):
        text = encodable(decoded(text), "The JSON schema")
        return Format("json_schema", parse_object(text.encode(), "The JSON schema", UsageError))
    if text in ("true", "false", "null") or text.startswith(("[", '"')):
        raise UsageError(f"json-schema must be a JSON object, or the name of a file with one, not {shown(text)}.")
    if not text:
        raise UsageError("json-schema must be a JSON schema, or the name of a file with one.", "json-schema")
    try:
        path = expanded(text)
        real = Path(os.path.realpath(path))
    except (OSError, ValueError, RuntimeError):
        raise UsageError(f"{shown(text)} is neither a JSON schema nor a path.") from None
    where = f"The file of the JSON schema, {shown(path)},"
    return Format("json_schema", parse_object(read_file(real, where, _MOST_BYTES, UsageError), where, UsageError))


def asked_format(name: str | None, schema: str | None) -> Format | None:
    """What --format and --json-schema ask for together. Raises UsageError."""
    if schema is None:
        return None if name is None else format_named(name)
    if name is not None and format_named(name) is None:
        raise UsageError("format text and a json-schema contradict each other; leave one out.", "format")
    return format_of_schema(schema)


def name_of(form: Format | None) -> str:
    """As `/show` has it."""
    return "text" if form is None else "json" if form.kind == "json_object" else "json-schema"


def schema_of(form: Format | None) -> str | None:
    """The schema's text; None for other formats."""
    return json.dumps(form.value) if form is not None and form.kind == "json_schema" else None


def is_json(text: str) -> bool:
    """Whether a reply is whole."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
