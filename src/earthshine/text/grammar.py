"""Constrained decoding: an answer in a given format, tool calls that follow their schemas, and thoughts before either.

A reply is a sequence of regions, divided by control tokens. The order of regions is Python code (`Steps`, which yields
a mask and is sent the next token); only the text within a region has a grammar. Invariant: a control token is allowed
only where a step names it, a stop token only where the reply may end. Refused, as TextError: what can't be compiled,
and tool calls if the tokenizer has no markers for them.
"""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from earthshine.errors import TextError
from earthshine.text.forms import CallForm
from earthshine.text.grammar_calls import (
    OPENINGS,
    Calls,
    JsonState,
    Steps,
    ToolRule,
    json_calls,
    section_calls,
    xml_calls,
)
from earthshine.text.grammar_compile import Compiler, Pattern, lark_text, regex_text
from earthshine.text.grammar_schema import schema_text
from earthshine.text.grammar_tokens import Literals, Mask, Matching, TokenSets
from earthshine.text.regions import THINK, UNTHINK
from earthshine.text.tokenizer import Tokenizer
from earthshine.untrusted import shown

_NAME = re.compile(r"[\w.\-]{1,256}")
_MAX_TOOLS = 512
_MAX_CHOICES = 4096
_MAX_CHOICE_CHARS = 64 << 10


@dataclass(frozen=True, slots=True)
class OutputRule:
    """What one reply must be.

    `thinking`: the reply begins within a thought, which is free text up to `</think>`; `may_think`: it may open one;
    `thought_tokens`: the most tokens of a thought. `format`: what the answer is, with `value` a schema, a regex (Rust's
    regex crate), a grammar (Lark's), or a list of texts; None for free text. `strict`: a schema's `uniqueItems` and
    formats are enforced or refused, not ignored. `choice`: "named" calls the function `name` once, "required" calls at
    least one function, "auto" any number, "none" none. `parallel`: several calls are allowed. `always`: "auto" and
    "none" are enforced even if nothing else (format, strict tool, `thought_tokens`, `parallel`) needs a mask.
    `first_index`: the number of calls in the conversation so far.
    """

    thinking: bool = False
    may_think: bool = False
    thought_tokens: int | None = None
    format: Literal["json_object", "json_schema", "regex", "grammar", "choice"] | None = None
    value: Any = None
    strict: bool = False
    tools: Sequence[ToolRule] = ()
    choice: Literal["none", "auto", "required", "named"] = "auto"
    name: str = ""
    parallel: bool = True
    always: bool = False
    first_index: int = 0


class ReplyConstraint:
    """One reply's constraint, as the engine's protocol `Constraint`; not safe to share between threads.

    If the model's first choice is to end the reply within JSON, then from there on only tokens that lead to the end of
    the JSON are allowed. If only the end were masked, small models would repeat themselves until max_tokens.
    """

    def __init__(self, tokens: TokenSets, steps: Steps, json: JsonState) -> None:
        self._tokens, self._steps, self._json = tokens, steps, json
        self._mask: Mask | None = None  # until the first token: many replies may wait, each with a matcher's memory
        self._token: int | None = None  # accepted, but not yet sent to the steps

    def allowed(self, likeliest: int | None = None) -> Mask:
        """The mask of the next token, int32 [ceil(vocab_size / 32)], read only. `likeliest`: the token with the highest
        logit. Raises TextError if no token can follow or the grammar takes too long."""
        mask, json = self._full(), self._json
        if not isinstance(json.walk, Matching) or json.ends is None:
            return mask
        if likeliest is not None and self._tokens.has(json.ends & ~mask, likeliest):
            json.ended = True
        return json.walk.brief(mask, json.ends) if json.ended else mask

    def _full(self) -> Mask:
        if self._mask is None:
            self._mask = next(self._steps)
        if self._token is not None:
            token, self._token = self._token, None
            try:
                self._mask = self._steps.send(token)
            except StopIteration:
                self._mask = self._tokens.stop_mask
        return self._mask

    def accept(self, token: int) -> None:
        """Advances by this token; raises TextError if it was not allowed."""
        if not self._tokens.has(self.allowed(), token):
            raise TextError(f"Token {token} is not one that the answer's grammar allows here.")
        self._token = token


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled rule, from which each reply starts its own constraint. Safe to share between threads."""

    _tokens: TokenSets
    _think: int | None  # the reply may begin with this id, which opens a thought
    _unthink: int | None  # ends a thought; without `_think`, the reply begins within one
    _thought_tokens: int | None  # the most tokens of a thought
    _body: Pattern | Literals | None
    _calls: Calls | None
    _must_call: bool

    def start(self) -> ReplyConstraint:
        """A new constraint, at the beginning of a reply; raises TextError like its `allowed`."""
        json = JsonState()
        return ReplyConstraint(self._tokens, self._steps(json), json)

    def _steps(self, json: JsonState) -> Steps:
        if self._unthink is not None and self._think is None:
            yield from self._thoughts(self._unthink)
        opening = self._tokens.only()
        if self._think is not None and self._thought_tokens != 0:
            opening = self._tokens.only(self._think)
        yield from self._answer(opening, json)

    def _thoughts(self, end: int) -> Steps:
        last = self._tokens.only(end)
        free = self._tokens.plain | last
        left = -1 if self._thought_tokens is None else self._thought_tokens
        while (yield free if left else last) != end:
            left -= 1

    def _answer(self, opening: Mask, json: JsonState) -> Steps:
        """Either text (free or in the format) or tool calls; calls may also follow free text. Then a stop token. The
        tokens of `opening` are allowed first too, and open a thought."""
        tokens, calls = self._tokens, self._calls
        section = tokens.only() if calls is None else tokens.only(calls.opening)
        free = tokens.plain | tokens.stop_mask | section
        walk = None if self._body is None else self._body.start()
        first = section if self._must_call else free if walk is None else walk.mask(tokens.stop_mask) | section
        token = yield first | opening
        if token == self._think and self._unthink is not None:
            yield from self._thoughts(self._unthink)
            token = yield first
        while token not in tokens.stops:
            if calls is not None and token == calls.opening:
                yield from calls.steps(tokens, json)
                return
            if walk is None:
                token = yield free
            else:
                walk.accept(token)
                json.enter(walk, tokens.stop_mask)
                token = yield walk.mask(tokens.stop_mask)


class Grammars:
    """Compiles rules for one tokenizer and a model of `vocab_size` ids; safe to share between threads.

    The vocabulary is prepared when the first rule needs it. Compiled schemas are cached, since agents send the same
    tools with each request.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        stop_tokens: Sequence[int],
        form: CallForm | None = CallForm.SECTION,
    ) -> None:
        if not stop_tokens or not all(0 <= token < vocab_size for token in stop_tokens):
            raise TextError(f"A grammar needs stop tokens, each an id below {vocab_size}.")
        self._given = tokenizer, vocab_size, tuple(stop_tokens)
        self._think, self._unthink = (tokenizer.special_id(text) for text in (THINK, UNTHINK))
        self._form = form if form is None or tokenizer.special_id(OPENINGS[form]) is not None else None
        self._lock = threading.Lock()
        self._made: tuple[TokenSets, Compiler] | None = None

    def compile(self, wanted: OutputRule) -> Grammar | None:
        """The rule's grammar, or None if there is nothing to enforce by a mask.

        Raises TextError that names what to change, and OverloadError while compilations that took too long still run.
        """
        must_call = wanted.choice in ("required", "named")
        calls = () if wanted.choice == "none" else self._callable(wanted)
        if must_call and not calls:
            raise TextError("A tool call is required, but no tools are given.")
        if must_call and self._form is None:
            raise TextError("This model has no form for tool calls; leave tool_choice at auto or none.")
        if self._form is None:
            calls = ()
        may_think = (wanted.thinking or wanted.may_think) and None not in (self._think, self._unthink)
        asked = wanted.format is not None or must_call or wanted.always or any(tool.strict for tool in calls)
        asked = asked or (may_think and wanted.thought_tokens is not None)
        if not asked and (wanted.parallel or not calls):
            return None
        tokens, compiler = self._prepared()
        if not tokens.is_exact and not asked:
            return None  # only one call is allowed: the server ends the reply after it
        if not tokens.is_exact:
            raise TextError(
                "This model's tokenizer has no fixed bytes for a token, so its answers can't be constrained."
            )
        return Grammar(
            tokens,
            self._think if may_think and not wanted.thinking else None,
            self._unthink if may_think else None,
            wanted.thought_tokens,
            None if must_call else self._body(tokens, compiler, wanted),
            self._compiled(compiler, wanted, calls) if calls else None,
            must_call,
        )

    def _prepared(self) -> tuple[TokenSets, Compiler]:
        with self._lock:
            if self._made is None:
                tokens = TokenSets(*self._given)
                self._made = tokens, Compiler(tokens)
            return self._made

    def _callable(self, wanted: OutputRule) -> tuple[ToolRule, ...]:
        tools = tuple(wanted.tools)
        if len(tools) > _MAX_TOOLS:
            raise TextError(f"A request may have at most {_MAX_TOOLS} tools; this one has {len(tools)}.")
        for tool in tools:
            if not _NAME.fullmatch(tool.name):
                raise TextError(f"{shown(tool.name)} can't name a tool; use up to 256 letters, digits and ._- signs.")
        if len({tool.name for tool in tools}) < len(tools):
            raise TextError("Two tools have the same name; each needs one of its own.")
        if wanted.choice != "named":
            return tools
        named = tuple(tool for tool in tools if tool.name == wanted.name)
        if not named:
            raise TextError(f"The tool that must be called, {shown(wanted.name)}, is not among the tools.")
        return named

    def _compiled(self, compiler: Compiler, wanted: OutputRule, tools: Sequence[ToolRule]) -> Calls:
        """The calls of these tools in the model's form."""
        must_call = wanted.choice in ("required", "named")
        parallel = wanted.parallel and wanted.choice != "named"
        if self._form is not CallForm.SECTION:
            marked = json_calls if self._form is CallForm.JSON else xml_calls
            return marked(self._given[0], compiler, tools, must_call, parallel)
        return section_calls(self._given[0], compiler, tools, must_call, parallel, wanted.first_index)

    def _body(self, tokens: TokenSets, compiler: Compiler, wanted: OutputRule) -> Pattern | Literals | None:
        if wanted.format is None:
            return None
        if wanted.format == "choice":
            return Literals(tokens, {text: text for text in _choices(wanted.value)})
        if wanted.format == "regex":
            return compiler.compile("The regex", "regex", regex_text("The regex", wanted.value))
        if wanted.format == "grammar":
            return compiler.compile("The grammar", "grammar", lark_text("The grammar", tokens, wanted.value))
        schema = {"type": "object"} if wanted.format == "json_object" else wanted.value
        text = schema_text("The JSON schema", schema, annotated=not wanted.strict)
        return compiler.compile("The JSON schema", "schema", text)


def _choices(value: Any) -> list[str]:
    right = isinstance(value, (list, tuple)) and 0 < len(value) <= _MAX_CHOICES
    if not right or not all(isinstance(text, str) and text for text in value):
        raise TextError(f"A choice must be a list of 1 to {_MAX_CHOICES} texts, none of them empty.")
    if sum(map(len, value)) > _MAX_CHOICE_CHARS:
        raise TextError(f"The texts of a choice may have {_MAX_CHOICE_CHARS} characters together.")
    if any("\ud800" <= letter <= "\udfff" for text in value for letter in text):
        raise TextError("A text of the choice holds half of a surrogate pair, which is not a character.")
    return list(value)
