"""Compiles untrusted schemas, regexes and Lark grammars with llguidance, within limits.

The input is first checked for size, depth and the forms for which the library runs out of stack or memory. A
compilation has a wall-clock limit; one that exceeds it is abandoned but can't be stopped, so at most two run at any
time, and the same text is refused at once until it has ended. Nothing is fetched. Refused, as TextError of one
sentence: what can't be compiled within the limits.
"""

import json
import queue
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from earthshine.errors import OverloadError, TextError
from earthshine.text.grammar_gbnf import is_gbnf, lark_from_gbnf
from earthshine.text.grammar_tokens import JsonPlace, Matching, TokenSets, library_tokenizer

# "call": the object that a schema describes, on its own line.
Kind = Literal["schema", "lenient schema", "call", "lenient call", "regex", "grammar"]
_Key = tuple[Kind, str]

JSON_OPTIONS = {
    # Only the spaces that templates write: with any white space allowed, some models write it without end.
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
}
MAX_REGEX_CHARS = 8 << 10
MAX_GRAMMAR_CHARS = 16 << 10
MAX_GRAMMAR_LINES = 500
_SECONDS = 2.0
_N_WORKERS = 2
_MAX_CACHED = 32
_N_PROBED = 3
# Nested definitions of 128 KiB need more than the usual 8 MiB of stack, and an overflow ends the process.
_STACK_BYTES = 256 << 20
_STACK_LOCK = threading.Lock()


class CompileTimeout(TextError):
    """The compilation took too long. The machine may be busy, so the grammar may be supported."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled grammar; `start` returns a new walk. Safe to share between threads."""

    tokens: TokenSets
    matcher: Any
    is_json: bool

    def start(self) -> Matching:
        return Matching(self.tokens, self.matcher.deep_copy(), JsonPlace() if self.is_json else None)


def _plain_text(what: str, text: Any, max_chars: int) -> str:
    if not isinstance(text, str) or len(text) > max_chars:
        raise TextError(f"{what} must be a text of at most {max_chars} characters.")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise TextError(f"{what} holds half of a surrogate pair, which is not a character.")
    return text


def regex_text(what: str, text: Any) -> str:
    """The checked regex, in the syntax of Rust's regex crate."""
    return _plain_text(what, text, MAX_REGEX_CHARS)


def lark_text(what: str, tokens: TokenSets, text: Any) -> str:
    """The checked grammar in Lark's notation; GBNF is translated. Control tokens and schemas in it are refused."""
    lark = _plain_text(what, text, MAX_GRAMMAR_CHARS)
    if lark.count("\n") >= MAX_GRAMMAR_LINES:
        raise TextError(f"{what} has over {MAX_GRAMMAR_LINES} lines; write it shorter.")
    if is_gbnf(lark):
        lark = lark_from_gbnf(what, lark)
    if "%json" in lark:
        raise TextError(f"{what} holds %json; a schema must be given as the answer's json_schema.")
    if tokens.tokenizer.controls.spans(lark) or re.search(r"<\[[\d^*]", lark):
        raise TextError(f"{what} names control tokens; it may only describe text.")
    return lark


def _reason(error: str) -> str:
    """The library's message in a few words."""
    for pattern, shortened in (
        (r"Unimplemented keys: \[(.*)\]", r"it uses keywords that are not supported: \1"),
        (r"Unknown format: (.*)", r"the format \1 is not supported"),
        (r"oneOf constraints.*", "oneOf is supported only where its branches exclude each other; use anyOf"),
        (r"Resource .* is not present.*", "a $ref may only point inside the schema (#/...); nothing is fetched"),
        (r"Pointer '(.*)' does not exist", r"a $ref points to \1, which does not exist"),
        (r"(?s)(?:.*: )?regex parse error:.*\nerror: ([^\n]*).*", r"in a regex, \1"),
        (r"(?s).*(decimal literal invalid|repetition quantifier).*", "a length or count in it is too large"),
        (r"(?s).*lookarounds not supported.*", r"a regex may not use \\b, look-ahead or look-behind"),
        (r"(?s)Unable to determine if regex is empty.*", "a pattern with its length bounds or format is too complex"),
        (r"(?s).*unknown special token.*", "it names a control token; it may only describe text"),
        (
            r"(?s).*(lexer precomputation failed|fuel exhausted|too big|too large|[Tt]oo many|too deeply|max is).*",
            "it is too complex",
        ),
        (r"(?s)panic.*|NoExtension.*", "nothing can match it"),
        (r"(?s)(?:at )?\d+\(\d+\): ([^\n]*).*", r"\1"),
    ):
        match = re.fullmatch(pattern, error.strip())
        if match:
            error = match.expand(shortened)
            break
    line = error.strip().splitlines()[0] if error.strip() else "it can't be followed"
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in line[:160]).rstrip(".")


def _source(kind: Kind, text: str) -> str:
    from llguidance import LLMatcher

    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if kind == "grammar":
        return LLMatcher.grammar_from_lark(text)
    options = {"lenient": kind.startswith("lenient"), "coerce_one_of": kind.startswith("lenient"), **JSON_OPTIONS}
    if kind.endswith("call"):
        schema = json.dumps({"x-guidance": options, **json.loads(text)})
        return LLMatcher.grammar_from_lark(f'start: "\\n" call "\\n"\ncall: %json {schema}')
    return LLMatcher.grammar_from_json_schema(text, overrides=options)  # type: ignore[arg-type]


def _build(tokens: TokenSets, library: Any, kind: Kind, text: str) -> Pattern:
    from llguidance import LLMatcher, LLParserLimits

    # The other limits keep their defaults; an object may then have 490 optional properties.
    limits = LLParserLimits(initial_lexer_fuel=300_000, max_lexer_states=20_000, verbose_errors=False)
    matcher = LLMatcher(library, _source(kind, text), log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()  # copies share what this computes
    if matcher.is_error():
        raise TextError(_reason(matcher.get_error()))
    pattern = Pattern(tokens, matcher, kind not in ("regex", "grammar"))
    _probe(pattern)
    return pattern


def _probe(pattern: Pattern) -> None:
    """Follows a few tokens, so that most grammars that nothing can match are refused before a reply begins."""
    tokens, walk = pattern.tokens, pattern.start()
    reason = "nothing can match it"
    for _ in range(_N_PROBED):
        try:
            mask = walk.mask(tokens.stop_mask) & tokens.plain
            reason = "it is too complex"
            if not mask.any():
                return
            walk.accept(int(np.unpackbits(mask.view(np.uint8), bitorder="little").argmax()))
        except TextError:
            raise TextError(reason) from None


class Compiler:
    """Compiles for one tokenizer and caches the most recent results; safe to share between threads.

    An abandoned compilation continues, and its result is cached for the next request with the same text.
    """

    def __init__(self, tokens: TokenSets) -> None:
        self._tokens = tokens
        self._library: Any = None
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_N_WORKERS)
        self._kept: OrderedDict[_Key, Pattern | str] = OrderedDict()  # str: why it can't be used
        self._late: set[_Key] = set()  # abandoned and still running, so at most _N_WORKERS

    def compile(self, what: str, kind: Kind, text: str) -> Pattern:
        """Compiles a checked text; `what` names it in messages.

        Raises TextError, and OverloadError while too many abandoned compilations still run.
        """
        key = kind, text
        with self._lock:
            if self._library is None:
                self._library = library_tokenizer(self._tokens)
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            elif key in self._late:
                raise _timeout(what)
        made = self._bounded(what, key) if found is None else found
        if isinstance(made, str):
            raise TextError(f"{what} can't be used: {made}.")
        return made

    def _bounded(self, what: str, key: _Key) -> Pattern | str:
        if not self._slots.acquire(timeout=_SECONDS):
            raise OverloadError("Too many grammars are being compiled; try again.", retry_seconds=5)
        results: queue.SimpleQueue[Pattern | str] = queue.SimpleQueue()
        try:
            _start(lambda: self._work(key, results))
        except RuntimeError:
            self._slots.release()
            raise OverloadError("No thread can be started to compile a grammar; try again.", retry_seconds=5) from None
        try:
            return results.get(timeout=_SECONDS)
        except queue.Empty:
            with self._lock:
                if not results.empty():  # it ended just now
                    return results.get()
                self._late.add(key)
            raise _timeout(what) from None

    def _work(self, key: _Key, results: "queue.SimpleQueue[Pattern | str]") -> None:
        try:
            made: Pattern | str = _build(self._tokens, self._library, *key)
        except BaseException as error:  # a panic of the library is not an Exception
            made = _reason(str(error))
        with self._lock:
            if key in self._late or isinstance(made, Pattern):
                self._kept[key] = made
                while len(self._kept) > _MAX_CACHED:
                    self._kept.popitem(last=False)
            self._late.discard(key)
            results.put(made)
        self._slots.release()


def _timeout(what: str) -> CompileTimeout:
    return CompileTimeout(f"{what} takes over {_SECONDS:g} seconds to compile; make it simpler.")


def _start(work: Callable[[], None]) -> None:
    """Runs on a daemon thread with a large stack, of which only the used part takes memory."""
    with _STACK_LOCK:
        before = threading.stack_size(_STACK_BYTES)
        try:
            threading.Thread(target=work, name="grammar", daemon=True).start()
        finally:
            threading.stack_size(before)
