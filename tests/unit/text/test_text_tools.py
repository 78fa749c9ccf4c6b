"""Kimi's TypeScript declarations: each rule of the reference on a small schema, and what falls back to JSON."""

from typing import Any

import pytest

from earthshine.errors import TextError
from earthshine.text import declare_tools


def _declare(parameters: dict[str, Any], **function: Any) -> str | None:
    text = declare_tools([{"type": "function", "function": {"name": "f", "parameters": parameters, **function}}])
    if text is None:
        return None
    head, tail = "# Tools\n\n## functions\nnamespace functions {\n", "\n}\n"
    assert text.startswith(head)
    assert text.endswith(tail)
    return text[len(head) : -len(tail)]


def _field(schema: Any) -> str | None:
    """The declaration of one optional field `x`, with its comments."""
    text = _declare({"type": "object", "properties": {"x": schema}})
    return None if text is None else text.removeprefix("type f = (_: {\n").removesuffix("\n}) => any;")


@pytest.mark.parametrize(
    ("schema", "declared"),
    [
        (True, "  x?: any"),
        (False, "  x?: null"),
        ({}, "  x?: any"),
        ({"type": "integer"}, "  x?: number"),
        ({"type": "null"}, "  x?: null"),
        ({"type": "date"}, "  x?: date"),
        ({"type": ["integer", "array", "object"]}, "  x?: number | Array<any> | {}"),
        ({"anyOf": [{"type": "string"}, {"enum": [1]}], "minLength": 1}, "  x?: string | 1"),
        ({"enum": ["a", 'b"', None, True, 1.5]}, '  x?: "a" | "b"" | None | True | 1.5'),
        ({"type": "number", "enum": [1, 2.5, None]}, "  x?: 1 | 2.5 | None"),
        ({"type": ["null", "boolean"], "enum": [True]}, "  x?: True"),
        ({"type": "array", "items": {}}, "  x?: Array<any>"),
        ({"type": "array", "items": {"type": "array", "items": True}}, "  x?: Array<Array<any>>"),
        ({"type": "array", "items": {"type": "string", "default": "d"}}, "  x?: Array<string>"),
        (
            {"type": "array", "items": {"type": "integer", "maximum": 3}, "minItems": 0},
            "  // minItems: 0\n  x?: Array<\n    // maximum: 3\n    number\n  >",
        ),
        ({"type": "object", "properties": {"y": {"type": "string"}}}, "  x?: {\n    y?: string\n  }"),
        ({"type": "object", "additionalProperties": None}, "  x?: {}"),
        ({"type": "string", "description": "a\n\nb"}, "  // a\n\n  // b\n  x?: string"),
        ({"type": "string", "default": False}, "  // Default: False\n  x?: string"),
        ({"type": "string", "default": {"é": None}}, '  // Default: {"é": null}\n  x?: string'),
        ({"type": "string", "pattern": "^a", "maximum": 3}, "  // pattern: ^a\n  x?: string"),
    ],
)
def test_fields(schema: Any, declared: str) -> None:
    assert _field(schema) == declared


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"type": "string"}]},
        {"description": "only words"},
        {"type": ["string", "date"]},
        {"type": 5},
        {"type": "integer", "enum": ["1"]},
        {"type": ["string", "integer"], "enum": ["1"]},
        {"type": ["string", "null", "integer"], "enum": ["1"]},
        {"enum": "a"},
        {"anyOf": {"type": "string"}},
        {"$ref": "#/$defs/Missing"},
        {"$ref": "#/properties/x"},
        {"$ref": 5},
        {"type": "object", "properties": [1]},
        {"type": "object", "required": "x"},
        {"type": "array", "items": [{"type": "string"}]},
        {"type": "string", "description": 5},
        "string",
        None,
    ],
)
def test_schemas_without_a_rule_fall_back_to_json(schema: Any) -> None:
    assert _field(schema) is None


def test_references() -> None:
    """A reference to the whole within $defs alone makes no `parameters` interface."""
    definitions = {"N": {"type": "object", "properties": {"up": {"$ref": "#"}}, "description": "A node."}}
    named = {"type": "object", "$defs": definitions, "properties": {"n": {"$ref": "#/$defs/N"}}}
    assert _declare(named) == "// A node.\ninterface N {\n  up?: parameters\n}\ntype f = (_: {\n  n?: N\n}) => any;"
    itself = {"properties": {"b": {"type": "string"}, "a": {"anyOf": [{"$ref": "#"}]}}, "required": ["b"]}
    assert _declare(itself) == (
        "interface parameters {\n  a?: parameters,\n  b: string\n}\ntype f = (_: parameters) => any;"
    )


def test_functions_without_name_or_parameters() -> None:
    text = declare_tools([{"type": "function", "function": {"description": "Does."}}])
    assert text == "# Tools\n\n## functions\nnamespace functions {\n// Does.\ntype function = (_: {}) => any;\n}\n"
    assert declare_tools([{"type": "function", "function": {}}, {"type": "plugin"}]) is None
    assert declare_tools([]) is None


@pytest.mark.parametrize("parameters", [[], "x", 5, {"$defs": []}])
def test_parameters_of_another_shape_fall_back_to_json(parameters: Any) -> None:
    assert _declare(parameters) is None


def test_deep_schemas_are_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(100_000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(TextError, match="levels deep"):
        _field(schema)


@pytest.mark.parametrize(
    "tools", [{}, "tools", [5], [{"function": "f"}], [{"x": {1: 2}}], [{"x": b""}], [{"x": 1 << 300}]]
)
def test_tools_of_another_shape_are_refused(tools: Any) -> None:
    with pytest.raises(TextError):
        declare_tools(tools)
