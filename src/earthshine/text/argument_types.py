"""Types of tool call arguments: which JSON types a schema permits, and the JSON of a value that was written as text.

Forms of tool calls that are not JSON do not write types, so the schema gives them. Invariant: `json_value` always
returns JSON; a text that fits none of the types becomes a string.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

Types = frozenset[str]
TEXT: Types = frozenset(("string",))
ANYTHING: Types = frozenset(("null", "boolean", "integer", "number", "string", "array", "object"))
_MAX_DEPTH = 32  # of references and of schemas within schemas
_MAX_LOOKS = 1000  # schemas that are read for one value


def types_of(schema: Any, root: Any) -> Types:
    """The types that a value of `schema` may have. References are resolved within `root` only."""
    return _Reading(root).types(schema)


def argument_types(parameters: Mapping[str, Any] | None, name: str) -> Types:
    """The types of the argument `name`. `parameters`: the schema of all arguments; one that it lacks is a string."""
    if not isinstance(parameters, Mapping):
        return TEXT
    properties, others = parameters.get("properties"), parameters.get("additionalProperties")
    if isinstance(properties, dict) and name in properties:
        return types_of(properties[name], parameters)
    return types_of(others, parameters) if isinstance(others, dict) and others else TEXT


def json_value(text: str, types: Types) -> str:
    """The JSON of a value that was written as `text`: a string only if none of the other types fits.

    Python's spellings of true, false and null are accepted too, since templates print them.
    """
    short = text.strip()
    if "null" in types and short in ("null", "None"):
        return "null"
    if "boolean" in types and short.lower() in ("true", "false"):
        return short.lower()
    value = _parsed(short)
    if "integer" in types and isinstance(value, float) and value.is_integer():
        return str(int(value))
    return short if _type(value) in types - TEXT else json.dumps(text, ensure_ascii=False)


def _parsed(text: str) -> Any:
    """The value of a JSON text; "" if it is not JSON, which callers treat like a string."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return ""


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _type(value: Any) -> str:
    """The type of a JSON value; "integer", not "number", for an integer."""
    for name, kind in (("boolean", bool), ("integer", int), ("number", float), ("string", str), ("array", list)):
        if isinstance(value, kind):
            return name
    return "object" if isinstance(value, dict) else "null"


class _Reading:
    """Finds the types of one schema within `root`. Beyond the limits, a schema permits anything."""

    def __init__(self, root: Any) -> None:
        self._root, self._left = root, _MAX_LOOKS

    def types(self, schema: Any, depth: int = 0) -> Types:
        self._left -= 1
        if not isinstance(schema, dict) or depth > _MAX_DEPTH or self._left < 0:
            return ANYTHING
        found = self._own(schema)
        if isinstance(schema.get("$ref"), str):
            found &= self.types(_looked_up(self._root, schema["$ref"]), depth + 1)
        for key in ("anyOf", "oneOf"):
            branches = schema.get(key)
            if isinstance(branches, list) and branches:
                found &= frozenset().union(*(self.types(inner, depth + 1) for inner in branches))
        every = schema.get("allOf")
        for inner in every if isinstance(every, list) else ():
            found &= self.types(inner, depth + 1)
        return found

    def _own(self, schema: Mapping[str, Any]) -> Types:
        """The types by the schema's own `type`, `enum` and `const`."""
        found, kinds, values = ANYTHING, schema.get("type"), schema.get("enum")
        named = ANYTHING.intersection(kinds if isinstance(kinds, list) else [kinds])
        if named:
            found &= named | (frozenset(("integer",)) if "number" in named else frozenset())
        if isinstance(values, list) and values:
            found &= frozenset(map(_type, values))
        return found & frozenset((_type(schema["const"]),)) if "const" in schema else found


def _looked_up(root: Any, reference: str) -> Any:
    """The target of `#/...`; None, which permits anything, if it does not exist in `root`."""
    start, _, pointer = reference.partition("#/")
    if start or not pointer:
        return root if reference == "#" else None
    for part in pointer.split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        root = root.get(name) if isinstance(root, dict) else None
    return root
