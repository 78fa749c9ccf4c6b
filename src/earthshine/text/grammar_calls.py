"""Constrained tool calls, in each form in which models write them.

A form has a control token that opens its calls, and steps from there to the end of the reply. Invariant: a call has
the name of a given tool, and arguments that its schema describes. Refused, as TextError: schemas that must be enforced
and can't be compiled, and tokenizers that have only some of a form's markers.
"""

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from earthshine.errors import TextError
from earthshine.text.forms import CALL, CALL_END, SECTION, CallForm
from earthshine.text.grammar_compile import Compiler, CompileTimeout, Kind, Pattern
from earthshine.text.grammar_schema import schema_text
from earthshine.text.grammar_tokens import Literals, Mask, TokenSets, Walk
from earthshine.text.grammar_xml import call_rules, start_rules
from earthshine.text.regions import SECTION_MARKERS
from earthshine.text.tokenizer import Tokenizer
from earthshine.untrusted import shown

Steps = Generator[Mask, int, None]
OPENINGS = {CallForm.SECTION: SECTION, CallForm.JSON: CALL, CallForm.XML: CALL}
_ANYTHING = '{"type": "object"}'
_Rules = TypeVar("_Rules")


@dataclass(frozen=True, slots=True)
class ToolRule:
    """A function that may be called. `parameters`: the JSON schema of its arguments, None for any object. With `strict`
    the whole schema is enforced or refused; without, keywords that are not supported are ignored."""

    name: str
    parameters: Mapping[str, Any] | None = None
    strict: bool = False


@dataclass(slots=True)
class JsonState:
    """`walk`: the JSON that a reply is within, or None. `ends`: the tokens by which a model would end it. `ended`: the
    model has chosen one of them."""

    walk: Walk | None = None
    ends: Mask | None = None
    ended: bool = False

    def enter(self, walk: Walk, ends: Mask) -> None:
        self.walk, self.ends = walk, ends

    def leave(self) -> None:
        self.walk = None


class Calls(Protocol):
    """The calls that a reply may hold."""

    @property
    def opening(self) -> int:
        """The id of the control token before the first call."""
        ...

    def steps(self, tokens: TokenSets, json: JsonState) -> Steps:
        """From after `opening` to the end of the reply."""
        ...


@dataclass(frozen=True, slots=True)
class SectionCalls:
    """Kimi's section of calls. `arguments`: function name -> grammar; `opening` and below: ids of markers."""

    arguments: Mapping[str, Pattern]
    first_index: int
    parallel: bool
    opening: int
    section_end: int
    call: int
    arguments_begin: int
    call_end: int

    def steps(self, tokens: TokenSets, json: JsonState) -> Steps:
        index = self.first_index
        more = tokens.only(self.section_end, self.call) if self.parallel else tokens.only(self.section_end)
        token = yield tokens.only(self.call)
        while token != self.section_end:
            ids = {f"functions.{name}:{index}": name for name in self.arguments}
            choosing = Literals(tokens, ids).start()
            yield from _text(tokens, choosing, self.arguments_begin)
            arguments = self.arguments[choosing.chosen].start()
            json.enter(arguments, tokens.stop_mask | tokens.only(self.call_end, self.section_end))
            yield from _text(tokens, arguments, self.call_end)
            json.leave()
            index += 1
            token = yield tokens.only(self.section_end) if json.ended else more
        yield tokens.stop_mask


@dataclass(frozen=True, slots=True)
class MarkedCalls:
    """Calls between two markers each; `call` is the grammar of what stands between them."""

    call: Pattern
    parallel: bool
    opening: int
    call_end: int
    newline: int

    def steps(self, tokens: TokenSets, json: JsonState) -> Steps:
        more = True
        while more:
            walk = self.call.start()
            json.enter(walk, tokens.stop_mask | tokens.only(self.call_end))
            yield from _text(tokens, walk, self.call_end)
            json.leave()
            more = self.parallel and not json.ended
            if more and (yield tokens.stop_mask | tokens.only(self.newline)) == self.newline:
                yield tokens.only(self.opening)
            else:
                more = False
        yield tokens.stop_mask


def _text(tokens: TokenSets, walk: Walk, end: int) -> Steps:
    ends = tokens.only(end)
    while (token := (yield walk.mask(ends))) != end:
        walk.accept(token)


def section_calls(
    tokenizer: Tokenizer,
    compiler: Compiler,
    tools: Sequence[ToolRule],
    must_call: bool,
    parallel: bool,
    first_index: int,
) -> SectionCalls:
    """`must_call`: schemas are enforced, as far as supported, even without `strict`. `first_index`: the index in the
    first call's id."""
    ids = _known(tokenizer, SECTION_MARKERS)
    arguments = {tool.name: _compiled(compiler, tool, *_arguments(compiler, tool, must_call)) for tool in tools}
    return SectionCalls(arguments, first_index, parallel, *ids)


def json_calls(
    tokenizer: Tokenizer, compiler: Compiler, tools: Sequence[ToolRule], must_call: bool, parallel: bool
) -> MarkedCalls:
    """Qwen3's calls: each is a JSON object on its own line. `must_call`: as in `section_calls`."""
    opening, call_end = _known(tokenizer, (CALL, CALL_END))
    chosen = [_arguments(compiler, tool, must_call) for tool in tools]
    # A schema that compiles as strict means the same as lenient.
    lenient = any(kind == "lenient schema" for kind, _ in chosen)
    branches = [_call_schema(tool.name, text) for tool, (_, text) in zip(tools, chosen, strict=True)]
    whole = schema_text("The schemas of the tools together", {"anyOf": branches}, annotated=lenient)
    call = compiler.compile("The tools together", "lenient call" if lenient else "call", whole)
    return MarkedCalls(call, parallel, opening, call_end, _newline(tokenizer))


def xml_calls(
    tokenizer: Tokenizer, compiler: Compiler, tools: Sequence[ToolRule], must_call: bool, parallel: bool
) -> MarkedCalls:
    """Qwen3-Coder's calls: a function's tag around those of its arguments. `must_call`: as in `section_calls`."""
    opening, call_end = _known(tokenizer, (CALL, CALL_END))
    rules = [_xml_rules(compiler, number, tool, must_call) for number, tool in enumerate(tools)]
    call = compiler.compile("The tools together", "grammar", start_rules(range(len(tools))) + "\n".join(rules))
    return MarkedCalls(call, parallel, opening, call_end, _newline(tokenizer))


def _newline(tokenizer: Tokenizer) -> int:
    return tokenizer.encode("\n", allow_special=False)[0]


def _xml_rules(compiler: Compiler, number: int, tool: ToolRule, must_call: bool) -> str:
    """The rules of a tool's calls, checked to compile."""
    what = _what(tool)

    def compiled(text: str) -> str:
        rules = call_rules(compiler, what, number, tool.name, json.loads(text), tool.strict)
        compiler.compile(what, "grammar", start_rules([number]) + rules)
        return rules

    return _enforced(tool, must_call, compiled, call_rules(compiler, what, number, tool.name, None, False))


def _call_schema(name: str, arguments: str) -> dict[str, Any]:
    """The schema of one call's object. The arguments' schema gets an `$id`, from which its references start."""
    inner = {"$id": f"urn:tool:{name}", **json.loads(arguments)}
    properties = {"name": {"const": name}, "arguments": inner}
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _known(tokenizer: Tokenizer, markers: Sequence[str]) -> list[int]:
    known = [token for token in map(tokenizer.special_id, markers) if token is not None]
    if len(known) < len(markers):
        raise TextError("The tokenizer has only some of the markers of tool calls; take one from the model's release.")
    return known


def _what(tool: ToolRule) -> str:
    return f"The schema of the tool {shown(tool.name)}"


def _compiled(compiler: Compiler, tool: ToolRule, kind: Kind, text: str) -> Pattern:
    return compiler.compile(_what(tool), kind, text)


def _arguments(compiler: Compiler, tool: ToolRule, must_call: bool) -> tuple[Kind, str]:
    """The schema of a tool's arguments that is enforced, checked to compile, and whether it is lenient."""
    kind: Kind = "schema" if tool.strict else "lenient schema"

    def compiled(text: str) -> tuple[Kind, str]:
        _compiled(compiler, tool, kind, text)
        return kind, text

    return _enforced(tool, must_call, compiled, ("schema", _ANYTHING))


def _enforced(tool: ToolRule, must_call: bool, compiled: Callable[[str], _Rules], free: _Rules) -> _Rules:
    """What `compiled` makes of the schema of a tool's arguments; `free`, for any arguments, if the request did not ask
    for this schema to be enforced."""
    if tool.parameters is None or not (tool.strict or must_call):
        return free
    what = _what(tool)
    schema = _object_schema(what, tool.parameters)
    try:
        return compiled(schema_text(what, schema, annotated=not tool.strict))
    except CompileTimeout:
        raise
    except TextError:
        if tool.strict:
            raise
        return free


def _object_schema(what: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of arguments, which are an object."""
    schema = {"type": "object", **parameters}
    kinds = schema["type"]
    if kinds != "object" and not (isinstance(kinds, list) and "object" in kinds):
        raise TextError(f'{what} must have the type "object".')
    return schema | {"type": "object"}
