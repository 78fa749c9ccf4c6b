"""The events of a streamed answer as they pass through: where they end, when the first token came, what was counted.

Only whole events are passed on, so that an answer that breaks can end with an event that clients understand. Bytes stay
as they are.
"""

import re
from dataclasses import dataclass, field

_MOST_HELD = 1 << 20  # bytes of an incomplete event; a larger one is passed on in parts
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_TOKEN = re.compile(
    rb'"(?:content|reasoning_content|reasoning|text|thinking|delta|arguments|partial_json)"\s*:\s*"(?!")'
)
_PROMPT = re.compile(rb'"(?:prompt_tokens|input_tokens)"\s*:\s*(\d{1,9})')
_CACHED = re.compile(rb'"cache_read_input_tokens"\s*:\s*(\d{1,9})')  # which Anthropic's input_tokens leave out
_OUTPUT = re.compile(rb'"(?:completion_tokens|output_tokens)"\s*:\s*(\d{1,9})')
_TAIL = 4096


@dataclass(slots=True)
class Counts:
    """Tokens that an answer says it counted, from its first and last bytes."""

    _seen: bytes = b""
    _first: bytes = b""

    def add(self, data: bytes) -> None:
        if len(self._first) < _TAIL:
            self._first += data[:_TAIL]
        self._seen = (self._seen + data)[-_TAIL:] if len(data) < _TAIL else data[-_TAIL:]

    def prompt(self) -> int | None:
        found = _last(_PROMPT, self._seen)
        if found is None:
            found = _last(_PROMPT, self._first)
        cached = _last(_CACHED, self._seen) or _last(_CACHED, self._first) or 0
        return None if found is None else found + cached

    def output(self) -> int | None:
        return _last(_OUTPUT, self._seen)


def _last(pattern: re.Pattern[bytes], text: bytes) -> int | None:
    found = None
    for match in pattern.finditer(text):
        found = int(match[1])
    return found


def ends_event(data: bytes) -> bool:
    """Whether an event ends in `data`."""
    return _END.search(data) is not None


@dataclass(slots=True)
class Events:
    """Cuts a stream of events at their ends."""

    token_seen: bool = False
    _rest: bytearray = field(default_factory=bytearray)
    _whole: bool = True  # what was passed on ends with an event

    def take(self, data: bytes) -> bytes:
        """The whole events that `data` completes; b"" if there are none."""
        if not self.token_seen and _TOKEN.search(self._rest[-256:] + data):
            self.token_seen = True
        rest = self._rest
        looked = max(0, len(rest) - 3)
        rest += data
        end = max((match.end() for match in _END.finditer(rest, looked)), default=0)
        if not end and len(rest) > _MOST_HELD:
            end = len(rest)
            self._whole = False
        elif end:
            self._whole = True
        found = bytes(rest[:end])
        del rest[:end]
        return found

    def rest(self) -> bytes:
        """What came after the last whole event, for an answer that has ended."""
        found = bytes(self._rest)
        self._rest.clear()
        return found

    def before_error(self) -> bytes:
        """What must be sent before another event: the end of one that was passed on in parts."""
        return b"" if self._whole else b"\n\n"
