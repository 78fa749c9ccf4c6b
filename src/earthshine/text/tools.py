"""Tool declarations as TypeScript, the form that Kimi was trained on.

The rules are those of tool_declaration_ts.py, published beside the weights. For a schema that they do not cover the
result is None, and the chat template writes the tools as JSON instead.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from earthshine.text.messages import check_tools, sort_keys

_STEP = "  "
_CONSTRAINTS = {
    "string": ("maxLength", "minLength", "pattern"),
    "number": ("maximum", "minimum"),
    "integer": ("maximum", "minimum"),
    "array": ("maxItems", "minItems"),
}
_UNION = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "null": "null",
    "object": "{}",
    "array": "Array<any>",
}
_VALUES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (),
}


class _NoRule(Exception):
    """The rules do not cover this schema."""


def _lines(schema: Mapping[str, Any], indent: str) -> list[str]:
    text = schema.get("description")
    if text is None or text == "":
        return []
    if not isinstance(text, str):
        raise _NoRule
    return [f"{indent}// {line}" if line else "" for line in text.split("\n")]


def _constraints(schema: Mapping[str, Any], indent: str) -> list[str]:
    kind = schema.get("type")
    if not isinstance(kind, str) or any(key in schema for key in ("$ref", "anyOf", "enum")):
        return []
    found = [f"{key}: {schema[key]}" for key in _CONSTRAINTS.get(kind, ()) if key in schema]
    return [f"{indent}// {', '.join(found)}"] if found else []


def _default(schema: Mapping[str, Any], indent: str) -> list[str]:
    value = schema.get("default")
    if value is None:
        return []
    plain = isinstance(value, (bool, int, float))
    return [f"{indent}// Default: {value if plain else json.dumps(value, ensure_ascii=False)}"]


def _enum(schema: Mapping[str, Any]) -> str:
    values, kind = schema["enum"], schema.get("type")
    if isinstance(kind, list):
        others = [name for name in kind if name != "null"]
        if len(kind) not in (1, 2) or (len(kind) == 2 and len(others) != 1):
            raise _NoRule
        kind = others[0] if others else "null"
    if not isinstance(values, list) or not isinstance(kind, (str, type(None))):
        raise _NoRule
    if kind is not None:
        fitting = _VALUES.get(kind)
        if fitting is None or not all(value is None or isinstance(value, fitting) for value in values):
            raise _NoRule
    return " | ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in values)


class _Function:
    """One function's declaration; remembers whether its parameters refer to themselves."""

    def __init__(self, function: Mapping[str, Any]) -> None:
        self._function = function
        parameters = function.get("parameters")
        self._parameters: Mapping[str, Any] = {} if parameters is None else parameters
        if not isinstance(self._parameters, dict):
            raise _NoRule
        definitions = self._parameters.get("$defs", {})
        if not isinstance(definitions, dict):
            raise _NoRule
        self._definitions = definitions
        self._refers_to_itself = False

    def _reference(self, target: Any) -> str:
        if target == "#":
            self._refers_to_itself = True
            return "parameters"
        name = target.removeprefix("#/$defs/") if isinstance(target, str) else target
        if name == target or name not in self._definitions:
            raise _NoRule
        return str(name)

    def _type(self, schema: Any, indent: str) -> str:
        if isinstance(schema, bool):
            return "any" if schema else "null"
        if not isinstance(schema, dict):
            raise _NoRule
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        if "anyOf" in schema:
            if not isinstance(schema["anyOf"], list):
                raise _NoRule
            return " | ".join(self._type(member, indent) for member in schema["anyOf"])
        if "enum" in schema:
            return _enum(schema)
        kind = schema.get("type")
        if isinstance(kind, list):
            if not all(isinstance(name, str) and name in _UNION for name in kind):
                raise _NoRule
            return " | ".join(_UNION[name] for name in kind)
        if kind == "object":
            return self._object(schema, indent)
        if kind == "array":
            return self._array(schema.get("items"), indent)
        if isinstance(kind, str):
            return "number" if kind == "integer" else kind
        if schema:
            raise _NoRule
        return "any"

    def _array(self, items: Any, indent: str) -> str:
        if not items:
            return "Array<any>"
        inner = indent + _STEP
        comments = [*_lines(items, inner), *_constraints(items, inner)] if isinstance(items, dict) else []
        if not comments:
            return f"Array<{self._type(items, indent)}>"
        return "\n".join(["Array<", *comments, f"{inner}{self._type(items, inner)}", f"{indent}>"])

    def _field(self, name: str, schema: Any, required: bool, indent: str) -> str:
        comments: list[str] = []
        if isinstance(schema, dict):
            comments = [*_lines(schema, indent), *_constraints(schema, indent), *_default(schema, indent)]
        return "\n".join([*comments, f"{indent}{name}{'' if required else '?'}: {self._type(schema, indent)}"])

    def _object(self, schema: Mapping[str, Any], indent: str, as_given: bool = False) -> str:
        properties, required = schema.get("properties") or {}, schema.get("required") or []
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise _NoRule
        inner = indent + _STEP
        names: Iterable[str] = properties
        if not as_given:
            names = sorted(properties, key=lambda name: (name not in required, name))
        fields = [self._field(name, properties[name], name in required, inner) for name in names]
        additional = schema.get("additionalProperties")
        if additional is not None and not as_given:
            others = ("never", "any")[additional] if isinstance(additional, bool) else self._type(additional, inner)
            fields.append(f"{inner}[k: string]: {others}")
        return "{\n" + ",\n".join(fields) + f"\n{indent}}}" if fields else "{}"

    def text(self) -> str:
        name = self._function.get("name", "function")
        if not isinstance(name, str):
            raise _NoRule
        parameters = self._object(self._parameters, "")
        interfaces: list[str] = []
        if self._refers_to_itself:
            interfaces.append(f"interface parameters {self._object(self._parameters, '', as_given=True)}")
            parameters = "parameters"
        for definition, schema in self._definitions.items():
            described = _lines(schema, "") if isinstance(schema, dict) else []
            interfaces += [*described, f"interface {definition} {self._type(schema, '')}"]
        return "\n".join([*interfaces, *_lines(self._function, ""), f"type {name} = (_: {parameters}) => any;"])


def declare_tools(tools: Sequence[dict[str, Any]]) -> str | None:
    """The declaration of all function tools; None if there are none, or if the rules do not cover a schema.

    The keys of the tools are sorted first, as in Kimi's code. Raises TextError if `tools` is not a list of objects or
    nests too deep.
    """
    checked = sort_keys(check_tools(tools))
    functions = [tool["function"] for tool in checked if tool.get("type") == "function" and tool.get("function")]
    if not functions:
        return None
    try:
        declared = "\n".join(_Function(function).text() for function in functions)
    except _NoRule:
        return None
    return f"# Tools\n\n## functions\nnamespace functions {{\n{declared}\n}}\n"
