"""Constrained tool calls in Qwen3-Coder's form (tags): a grammar in Lark's notation for the calls of all tools.

A string is any text between its tags, as far as `enum`, `const`, lengths and `pattern` permit; other values are JSON
that follows its schema. Arguments come in the schema's order. Keywords that can't be enforced in this form are refused,
as TextError, if the tool is strict, and otherwise ignored.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from earthshine.errors import TextError
from earthshine.text.argument_types import ANYTHING, TEXT, types_of
from earthshine.text.grammar_compile import JSON_OPTIONS, Compiler
from earthshine.text.grammar_schema import schema_text
from earthshine.text.regions_xml import FUNCTION, FUNCTION_END, PARAMETER, PARAMETER_END
from earthshine.untrusted import shown

_END = json.dumps(f"\n{PARAMETER_END}\n")
_WITHOUT_END = r"~/(?s:.*)<\/parameter>(?s:.*)/"
_MOST_LENGTH = 1 << 16
_NOTES = frozenset(("title", "description", "$comment", "default", "examples"))
_ROOT_WORDS = _NOTES | {"type", "properties", "required", "additionalProperties", "$defs", "definitions", "$schema"}
_TEXT_WORDS = _NOTES | {"type", "enum", "const", "minLength", "maxLength", "pattern"}
_NAME = re.compile(r"[^<>\n]{1,256}")
_REGEX_PART = re.compile(r"(?s)\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.")  # an escaped character, a class, or a character
_ESCAPED_OR_SLASH = re.compile(r"(?s)\\.|/")


def call_rules(
    compiler: Compiler, what: str, number: int, name: str, schema: Mapping[str, Any] | None, strict: bool
) -> str:
    """Lark's rules for a call of one tool; `call_NUMBER` is one. `what` names the schema in messages. `schema`: that of
    the arguments, checked by `schema_text`; None for any. `strict`: all of it is enforced or refused."""
    return "\n".join(_Tool(compiler, what, f"call_{number}", schema, strict).rules(name))


def start_rules(numbers: Iterable[int]) -> str:
    """The rules for the text between a call's two markers, which use those of the tools."""
    every = " | ".join(f"call_{number}" for number in numbers)
    return (
        f'start: "\\n" call "\\n"\ncall: {every}\nany_text[suffix={_END}]: ANY_TEXT\n'
        f"ANY_TEXT: /(?s:.*)/ & {_WITHOUT_END}\n"
    )


class _Tool:
    def __init__(
        self, compiler: Compiler, what: str, rule: str, schema: Mapping[str, Any] | None, strict: bool
    ) -> None:
        self._compiler, self._what, self._rule, self._strict = compiler, what, rule, strict
        self._schema: Mapping[str, Any] = {} if schema is None else schema

    def rules(self, name: str) -> Iterator[str]:
        for word in self._schema.keys() - _ROOT_WORDS:
            self._require(False, word)
        properties, required = self._schema.get("properties"), self._schema.get("required")
        properties = properties if isinstance(properties, dict) else {}
        needed = [key for key in required if isinstance(key, str)] if isinstance(required, list) else []
        self._require(set(needed) <= properties.keys(), "required")
        if not properties:
            others = self._schema.get("additionalProperties")
            anything = isinstance(others, dict) and others.keys() <= _NOTES
            self._require(anything or others in (None, True, False), "additionalProperties")
            free = "" if others is False else f"{self._rule}_any*"
            yield f"{self._rule}: {_quoted(f'{FUNCTION}{name}>', free)}"
            yield f'{self._rule}_any: "{PARAMETER}" /[^<>\\n]{{1,64}}/ ">\\n" any_text'
            return
        parts = []
        for index, (key, inner) in enumerate(properties.items()):
            if not _NAME.fullmatch(key) or key != key.strip():
                if key in needed:
                    raise TextError(
                        f"{self._what} requires the argument {shown(key)}, a name that this model's tool-call format "
                        "can't express."
                    )
                continue
            value = f"{self._rule}_{index}"
            yield from self._value(value, inner, f"#/properties/{_pointer(key)}")
            yield f'{value}_named: "{_inner(f"{PARAMETER}{key}>")}\\n" {value}'
            parts.append(f"{value}_named" + ("" if key in needed else "?"))
        yield f"{self._rule}: {_quoted(f'{FUNCTION}{name}>', ' '.join(parts))}"

    def _require(self, holds: bool, word: str) -> None:
        if self._strict and not holds:
            raise TextError(
                f"{self._what} can't be used: {shown(word)} can't be enforced in this model's tool-call format."
            )

    def _require_free(self, schema: Any) -> None:
        """For a value that may be any text: requires that its schema has types only."""
        for inner in _branches(schema):
            for word in inner.keys() - _NOTES - {"type", "anyOf", "oneOf"}:
                self._require(False, word)

    def _value(self, rule: str, schema: Any, place: str) -> Iterator[str]:
        """The rules of one value with its end tag."""
        types = types_of(schema, self._schema)
        if not isinstance(schema, dict) or types == ANYTHING:
            self._require_free(schema)
            yield f"{rule}: any_text"
        elif not types & TEXT:
            yield f"{rule}: {rule}_json {_END}"
            yield f"{rule}_json: %json {self._json(schema, place)}"
        elif types == TEXT and "$ref" not in schema:
            yield from self._text(rule, schema)
        else:  # string or another type: any text
            self._require_free(schema)
            yield f"{rule}: any_text"

    def _text(self, rule: str, schema: Mapping[str, Any]) -> Iterator[str]:
        for word in schema.keys() - _TEXT_WORDS:
            self._require(False, word)
        texts, pattern = self._listed(schema), schema.get("pattern")
        regex = _regex(pattern) if isinstance(pattern, str) else None
        self._require(pattern is None or regex is not None, "pattern")
        if texts is not None and regex is None:
            yield f"{rule}: " + " | ".join(_string(f"{text}\n{PARAMETER_END}\n") for text in texts)
            return
        terminals = self._lengths(schema) if texts is None else [f"({' | '.join(map(_string, texts))})"]
        if regex is not None:
            terminals.append(f"/{regex}/")
            if len(terminals) > 1:  # inside the grammar of a call, it would not be noticed that nothing fits both
                value = f"start: VALUE\nVALUE: {' & '.join(terminals)}"
                self._compiler.compile(f"{self._what}: 'pattern' with the keywords beside it", "grammar", value)
        if texts is None:
            terminals.append(_WITHOUT_END)
        if terminals == [_WITHOUT_END]:
            yield f"{rule}: any_text"
            return
        yield f"{rule}[suffix={_END}]: {rule.upper()}"
        yield f"{rule.upper()}: {' & '.join(terminals)}"

    def _listed(self, schema: Mapping[str, Any]) -> list[str] | None:
        """The texts that `enum`, `const` and lengths permit; None if there is neither `enum` nor `const`."""
        values, texts = schema.get("enum"), None
        self._require(values is None or (isinstance(values, list) and bool(values)), "enum")
        if isinstance(values, list) and values:
            texts = [value for value in values if isinstance(value, str)]
        if "const" in schema:
            texts = [schema["const"]] if texts is None or schema["const"] in texts else []
        if texts is None:
            return None
        least, most = self._bound(schema, "minLength"), self._bound(schema, "maxLength")
        fitting = [text for text in texts if (least or 0) <= len(text) and (most is None or len(text) <= most)]
        if not fitting:
            words = " and ".join(repr(word) for word in ("enum", "const", "minLength", "maxLength") if word in schema)
            raise TextError(f"{self._what} can't be used: no text fits {words} together.")
        return fitting

    def _lengths(self, schema: Mapping[str, Any]) -> list[str]:
        """The terminal of texts with permitted lengths, if these are bounded."""
        bounds = {word: self._bound(schema, word) for word in ("minLength", "maxLength")}
        for word, bound in bounds.items():
            if bound is not None and bound >= _MOST_LENGTH:
                self._require(False, word)
                bounds[word] = None
        least, most = bounds.values()
        return [] if least is most is None else [f"/(?s:.{{{least or 0},{'' if most is None else most}}})/"]

    def _bound(self, schema: Mapping[str, Any], word: str) -> int | None:
        bound = schema.get(word)
        if isinstance(bound, (int, float)) and not isinstance(bound, bool) and bound >= 0 and bound == int(bound):
            return int(bound)
        self._require(bound is None, word)
        return None

    def _json(self, schema: Mapping[str, Any], place: str) -> str:
        """A value's schema as JSON; with references, the whole schema of the arguments, to which they point."""
        options = {"lenient": not self._strict, "coerce_one_of": not self._strict, **JSON_OPTIONS}
        whole: dict[str, Any] = dict(schema)
        if '"$ref"' in json.dumps(schema):
            root = {"$id": "urn:tool", **self._schema}
            whole = {"$ref": f"urn:tool{place}", "$defs": {"tool": root}}
        text = schema_text(self._what, whole, annotated=not self._strict)
        return json.dumps({"x-guidance": options, **json.loads(text)}, ensure_ascii=False)


def _quoted(function: str, parameters: str) -> str:
    return f'"{_inner(function)}\\n" {parameters} "{FUNCTION_END}"'


def _string(text: str) -> str:
    return f'"{_inner(text)}"'


def _inner(text: str) -> str:
    """The text, escaped for a quoted string in Lark."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _pointer(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _branches(schema: Any) -> Iterator[Mapping[str, Any]]:
    """The schema and those in its `anyOf` and `oneOf`."""
    if isinstance(schema, dict):
        yield schema
        for key in ("anyOf", "oneOf"):
            for inner in schema[key] if isinstance(schema.get(key), list) else ():
                yield from _branches(inner)


def _regex(pattern: str) -> str | None:
    """A regex, as Lark writes it between slashes, for whole texts in which `pattern` matches. None if it has anchors
    elsewhere than at its ends, or alternatives that an anchor does not apply to."""
    parts = _REGEX_PART.findall(pattern)
    begins, ends = parts[:1] == ["^"], parts[-1:] == ["$"]
    inner, depth = parts[begins : len(parts) - ends], 0
    for part in inner:
        depth += (part == "(") - (part == ")")
        if depth < 0 or part in ("^", "$") or (part == "|" and depth == 0 and (begins or ends)):
            return None
    whole = f"{'' if begins else '(?s:.*)'}(?:{''.join(inner)}){'' if ends else '(?s:.*)'}"
    return _ESCAPED_OR_SLASH.sub(lambda found: "\\/" if found[0] == "/" else found[0], whole)
