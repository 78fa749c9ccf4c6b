"""The server's log: one line for each event, in columns for people or as a JSON object.

A JSON line is ASCII, so that nothing in a request can end a line or begin another, whatever splits the log. In text,
callers pass what is safe to show.
"""

import datetime
import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from earthshine.untrusted import shown

_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


@dataclass(frozen=True, slots=True)
class Log:
    """`write` is called with each line. A call logs a sentence about the server as a whole."""

    write: Callable[[str], None] = lambda line: None
    as_json: bool = False

    def __call__(self, sentence: str) -> None:
        self.write(json_line("notice", {"message": sentence}) if self.as_json else sentence)

    def event(self, name: str, columns: list[str], fields: Mapping[str, Any]) -> None:
        """An event of a request: `columns` for people, `fields` for JSON, of which None are left out."""
        if self.as_json:
            self.write(json_line(name, {key: value for key, value in fields.items() if value is not None}))
        else:
            self.write("  ".join([time.strftime("%Y-%m-%d %H:%M:%S"), *columns]))


def json_line(event: str, fields: Mapping[str, Any]) -> str:
    """One line with the time, in UTC. A lone surrogate, which JSON readers may refuse, becomes a question mark."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    found = {"time": now, "event": event, **fields}
    whole = json.dumps(found, ensure_ascii=False).encode("utf-8", "replace")
    return json.dumps(json.loads(whole))


class JsonFormatter(logging.Formatter):
    """Records of Python's logging in the same form: the event is "warning" or "error", which may have a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {"message": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json_line("error" if record.levelno >= logging.ERROR else "warning", fields)


def request_id(headers: Mapping[str, str]) -> str:
    """The client's X-Request-Id where it is short and plain, otherwise a new one."""
    given = headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else secrets.token_hex(8)


def shown_path(path: str) -> str:
    """A path without a route, in a form that is safe for logs and messages."""
    return shown(path)[1:-1]
