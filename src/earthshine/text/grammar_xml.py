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
from earthshine.text.grammar_compile import JSON_OPTIONS
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


def call_rules(what: str, number: int, name: str, schema: Mapping[str, Any] | None, strict: bool) -> str:
    """Lark's rules for a call of one tool; `call_NUMBER` is one. `what` names the schema in messages. `schema`: that of
    the arguments, checked by `schema_text`; None for any. `strict`: all of it is enforced or refused."""
    return "\n".join(_Tool(what, f"call_{number}", schema, strict).rules(name))


def start_rules(numbers: Iterable[int]) -> str:
    """The rules for the text between a call's two markers, which use those of the tools."""
    every = " | ".join(f"call_{number}" for number in numbers)
    return (
        f'start: "\\n" call "\\n"\ncall: {every}\nany_text[suffix={_END}]: ANY_TEXT\n'
        f"ANY_TEXT: /(?s:.*)/ & {_WITHOUT_END}\n"
    )


class _Tool:
    def __init__(self, what: str, rule: str, schema: Mapping[str, Any] | None, strict: bool) -> None:
        self._what, self._rule, self._strict = what, rule, strict
        self._schema: Mapping[str, Any] = {} if schema is None else schema
        self._terminals: list[str] = []

    def rules(self, name: str) -> Iterator[str]:
        properties = self._schema.get("properties")
        if not isinstance(properties, dict) or not properties:
            self._require(self._schema.get("additionalProperties") in (None, True, False), "additionalProperties")
            free = "" if self._schema.get("additionalProperties") is False else f"{self._rule}_any*"
            yield f"{self._rule}: {_quoted(f'{FUNCTION}{name}>', free)}"
            yield f'{self._rule}_any: "{PARAMETER}" /[^<>\\n]{{1,64}}/ ">\\n" any_text'
            return
        for word in self._schema.keys() - _ROOT_WORDS:
            self._require(False, word)
        required = self._schema.get("required")
        needed = [key for key in required if isinstance(key, str)] if isinstance(required, list) else []
        self._require(set(needed) <= properties.keys(), "required")
        parts = []
        for index, (key, inner) in enumerate(properties.items()):
            if not _NAME.fullmatch(key) or key != key.strip():
                if key in needed:
                    raise TextError(f"{self._what} requires {shown(key)}, a name that this model's calls can't hold.")
                continue
            value = f"{self._rule}_{index}"
            yield from self._value(value, inner, f"#/properties/{_pointer(key)}")
            yield f'{value}_named: "{_inner(f"{PARAMETER}{key}>")}\\n" {value}'
            parts.append(f"{value}_named" + ("" if key in needed else "?"))
        yield f"{self._rule}: {_quoted(f'{FUNCTION}{name}>', ' '.join(parts))}"

    def _require(self, holds: bool, word: str) -> None:
        if self._strict and not holds:
            raise TextError(f"{self._what} can't be used: this model's form of calls can't be held to {shown(word)}.")

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
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(values, list) and values:
            texts = [value for value in values if isinstance(value, str)]
            yield f"{rule}: " + " | ".join(f'"{_inner(text)}\\n{PARAMETER_END}\\n"' for text in texts)
            return
        least, most = (schema.get(word) for word in ("minLength", "maxLength"))
        bounded = [bound for bound in (least, most) if bound is not None]
        fits = all(type(bound) is int and 0 <= bound < _MOST_LENGTH for bound in bounded)
        self._require(fits, "lengths")
        terminals = [_WITHOUT_END]
        if bounded and fits:
            terminals.insert(0, f"/(?s:.{{{least or 0},{'' if most is None else most}}})/")
        else:
            terminals.insert(0, "/(?s:.*)/")
        pattern = schema.get("pattern")
        if isinstance(pattern, str):
            found = _regex(pattern)
            self._require(found is not None, "pattern")
            terminals += [] if found is None else [f"/{found}/"]
        if len(terminals) == 2 and not bounded:
            yield f"{rule}: any_text"
            return
        yield f"{rule}[suffix={_END}]: {rule.upper()}"
        yield f"{rule.upper()}: {' & '.join(terminals)}"

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
    """A regex for whole texts in which `pattern` matches; None if it has anchors elsewhere than at its ends."""
    begins, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    inner = pattern[1 if begins else 0 : -1 if ends else None]
    if (begins or ends) and "|" in inner:
        return None
    if re.search(r"(?<!\\)[$]|(?<![\\\[])\^", inner):
        return None
    whole = f"{'' if begins else '(?s:.*)'}(?:{inner}){'' if ends else '(?s:.*)'}"
    return re.sub(r"(?<!\\)/", r"\\/", whole)
