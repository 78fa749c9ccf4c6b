"""Schemas as publishers and tools write them: names, records, annotations; and JSON that is compact."""

import json
from typing import Any

import pytest

from earthshine.errors import TextError
from earthshine.text.grammar_schema import FORMATS, schema_text

from .grammars import House

ANYTHING = "https://example.com/schemas/thing"
TEXT = {"type": "string"}


def _allows(house: House, schema: Any, value: Any, strict: bool = False) -> bool:
    grammar = house.compile(format="json_schema", value=schema, strict=strict)
    return house.follows(grammar, json.dumps(value))


@pytest.mark.parametrize(
    "name",
    ["a plain phrase", "#anchor", "", "thing", ANYTHING, f"{ANYTHING}#/$defs/name", "urn:x:y", "http://[", "x" * 5000],
)
def test_any_name_is_harmless(house: House, name: str) -> None:
    schema = {"$id": name, "$schema": name, "type": "array", "items": {"$ref": "#/$defs/a"}, "$defs": {"a": TEXT}}
    assert _allows(house, schema, ["x"], strict=True)
    assert not _allows(house, schema, [1], strict=True)
    if name.strip("#") != name or not name:
        return  # then it is part of another document, where its references start
    inner = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    assert _allows(house, inner, {"a": ["x"]}, strict=True)
    assert not _allows(house, inner, {"a": [1]}, strict=True)


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("#/$defs/a", {}),
        (f"{ANYTHING}#/$defs/a", {}),
        ("thing#/$defs/a", {}),
        ("#named", {"$anchor": "named"}),
        ("#named", {"$id": "#named"}),
        (f"{ANYTHING}#named", {"$anchor": "named"}),
        ("other", {"$id": "other"}),
        ("https://example.com/schemas/other", {"$id": "other"}),
        ("other#/$defs/b", {"$id": "other", "type": "object", "$defs": {"b": TEXT}}),
    ],
)
def test_references_by_name_are_followed(house: House, reference: str, name: dict[str, Any]) -> None:
    schema = {"$id": ANYTHING, "$ref": reference, "$defs": {"a": TEXT | name}}
    assert _allows(house, schema, "x", strict=True)
    assert not _allows(house, schema, 1, strict=True)


def test_names_of_places_may_be_odd(house: House) -> None:
    odd = "a b/~%ü"
    schema = {"$ref": "#here", "$defs": {odd: {"$anchor": "here", "type": "integer"}}}
    assert _allows(house, schema, 7)
    assert not _allows(house, schema, "x")


def test_a_resource_inside_another_keeps_its_own_definitions(house: House) -> None:
    inner = {"$id": "inner", "$ref": "#/$defs/a", "$defs": {"a": TEXT}}
    schema = {"type": "array", "items": inner, "$defs": {"a": {"type": "integer"}}}
    assert _allows(house, schema, ["x"])
    assert not _allows(house, schema, [1])
    outside = {"type": "array", "items": {"$id": "inner", "items": {"$ref": "#/$defs/a"}}, "$defs": {"a": TEXT}}
    assert _allows(house, outside, [["x"]])


def test_what_only_looks_like_a_name_is_kept(house: House) -> None:
    schema = {"type": "object", "properties": {"$id": TEXT, "$ref": {"const": "#x"}}, "required": ["$id", "$ref"],
              "additionalProperties": False}  # fmt: skip
    assert _allows(house, schema, {"$id": "x", "$ref": "#x"})
    assert not _allows(house, {"const": {"$id": "a", "uniqueItems": False}}, {"uniqueItems": False})


@pytest.mark.parametrize(
    ("names", "right", "wrong"),
    [
        ({"type": "string"}, ["a", ""], []),
        ({"type": ["string"], "description": "a key"}, ["a"], []),
        (True, ["a"], []),
        ({"enum": ["a", "b"]}, ["a", "b"], ["c"]),
        ({"type": "string", "pattern": "^x"}, ["xa"], ["ax"]),
        ({"minLength": 2}, ["ab", "abc"], ["a"]),
        ({"type": "string", "maxLength": 2}, ["ab", "a"], ["abc"]),
    ],
)
def test_records(house: House, names: Any, right: list[str], wrong: list[str]) -> None:
    """As Zod and others write them: the values have a type, and the names too."""
    schema = {"type": "object", "propertyNames": names, "additionalProperties": {"type": "integer"}}
    for name in right:
        assert _allows(house, schema, {name: 1}, strict=True), name
        assert not _allows(house, schema, {name: "x"}, strict=True), name
    for name in wrong:
        assert not _allows(house, schema, {name: 1}, strict=True), name


def test_names_leave_what_a_reference_points_to(house: House) -> None:
    schema = {
        "type": "object",
        "additionalProperties": {"type": "integer"},
        "properties": {"q": {"$ref": "#/additionalProperties"}},
        "propertyNames": {"enum": ["q"]},
    }
    with pytest.raises(TextError, match='not supported: "propertyNames"'):
        house.compile(format="json_schema", value=schema)
    del schema["propertyNames"]
    assert _allows(house, schema, {"q": 1})
    assert not _allows(house, schema, {"q": "x"})


def test_names_keep_the_order_of_properties(house: House) -> None:
    schema = {
        "type": "object",
        "properties": {"b": {"type": "integer"}, "a": {"type": "integer"}},
        "propertyNames": {"enum": ["a", "b"]},
        "required": ["a", "b"],
    }
    grammar = house.compile(format="json_schema", value=schema)
    assert house.follows(grammar, '{"b":1,"a":2}')
    assert not house.follows(grammar, '{"a":2,"b":1}')


def test_what_has_no_strict_is_annotated(house: House) -> None:
    unique = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    colour = {"type": "string", "format": "color"}
    assert _allows(house, unique, [1, 1])
    assert not _allows(house, unique, ["x"])
    assert _allows(house, colour, "no colour")
    assert not _allows(house, {"type": "string", "format": "date"}, "no date")
    for schema, refusal in ((unique, 'not supported: "uniqueItems"'), (colour, "format color is not supported")):
        with pytest.raises(TextError, match=refusal):
            house.compile(format="json_schema", value=schema, strict=True)
    assert _allows(house, {"type": "array", "uniqueItems": False}, [1, 1], strict=True)
    with pytest.raises(TextError, match='not supported: "not"'):
        house.compile(format="json_schema", value={"not": {}})


def test_the_formats_are_those_of_the_library(house: House) -> None:
    others = ("idn-email", "iri", "uri-reference", "regex", "int64", "password", "json-pointer")
    for form in (*FORMATS, *others):
        if form in FORMATS:
            house.compile(format="json_schema", value={"type": "string", "format": form}, strict=True)
        else:
            with pytest.raises(TextError, match="is not supported"):
                house.compile(format="json_schema", value={"type": "string", "format": form}, strict=True)


@pytest.mark.parametrize("rule", [{"format": "json_object"}, {"format": "json_schema", "value": {"type": "object"}}])
def test_json_is_compact(house: House, rule: dict[str, Any]) -> None:
    grammar = house.compile(**rule)
    for text in ('{"a":[1,2],"b":{}}', '{"a": [1, 2], "b": {}}', '{"a":" \\n ", "b": 1}'):
        assert house.follows(grammar, text), text
    for text in (
        ' {"a": 1}',
        '{"a": 1} ',
        '{ "a": 1}',
        '{"a":  1}',
        '{"a" : 1}',
        '{"a": [ 1]}',
        '{\n"a": 1}',
        '{"a":\t1}',
    ):
        assert not house.follows(grammar, text), text


def test_a_number_has_an_end(house: House) -> None:
    for schema in ({"type": "number"}, {"type": "integer"}, {"type": "number", "minimum": 3}, {"type": ["number"]}):
        grammar = house.compile(format="json_schema", value={"type": "array", "items": schema})
        constraint = grammar.start()
        (nine,) = house.tokenizer.encode("9", allow_special=False)
        constraint.accept(*house.tokenizer.encode("[", allow_special=False))
        n_digits = 0
        while house.bits(constraint.allowed())[nine]:
            constraint.accept(nine)
            n_digits += 1
            assert n_digits < 100
        assert n_digits > 20
        assert house.follows(grammar, "[" + "9" * 20 + ", 7, 8" * 20 + "]")
    text = house.compile(format="json_schema", value={"type": "string"})
    assert house.follows(text, '"' + "9" * 100 + r"\"" + "9" * 100 + '"')
    long = 10**40
    assert house.follows(house.compile(format="json_schema", value={"const": long}), str(long))


@pytest.mark.parametrize("most", [1 << 32, 10**12, 10**30, 1e30])
def test_an_upper_bound_beyond_any_reply_binds_nothing(house: House, most: float) -> None:
    text, items = {"type": "string", "minLength": 2, "maxLength": most}, {"type": "array", "maxItems": most}
    record = {"type": "object", "maxProperties": most}
    for schema, right, wrong in ((text, '"ab"', '"a"'), (items, "[1, 2]", "{}"), (record, '{"a": 1}', "[]")):
        grammar = house.compile(format="json_schema", value=schema, strict=True)
        assert house.follows(grammar, right)
        assert not house.follows(grammar, wrong)


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        (r"\p{L}", ["a", "Ж", "中", "ª"], ["1", "-", " ", "_", "ab"]),
        (r"\p{Lu}", ["A", "Ж"], ["a", "ж", "中", "1"]),
        (r"\P{L}", ["1", "-", "☃", "²"], ["a", "Ж", "中"]),
        (r"\pL\p{Nd}", ["a1", "Ж٣"], ["11", "a", "a²"]),
        (r"[\p{Greek}\p{Nd}]+", ["β7", "Ω"], ["a", "Ж"]),
        (r"[^\p{L}]+", ["1-2"], ["1a", "中"]),
    ],
)
def test_properties_of_characters_are_obeyed(house: House, pattern: str, right: list[str], wrong: list[str]) -> None:
    schema = house.compile(format="json_schema", value={"type": "string", "pattern": f"^{pattern}$"}, strict=True)
    regex = house.compile(format="regex", value=pattern)
    for text in right + wrong:
        assert house.follows(regex, text) is (text in right), text
        assert house.follows(schema, f'"{text}"') is (text in right), text


@pytest.mark.parametrize("pattern", [r"\p{Elvish}", r"^\p{}$", r"\p{L"])
def test_unknown_properties_are_refused(house: House, pattern: str) -> None:
    for rule in ({"format": "regex", "value": pattern}, {"format": "json_schema", "value": {"pattern": pattern}}):
        with pytest.raises(TextError, match="in a regex"):
            house.compile(**rule, strict=True)


def test_a_schema_is_not_changed_for_its_owner() -> None:
    schema = {"$id": "x", "uniqueItems": True, "propertyNames": TEXT}
    schema_text("The schema", schema, annotated=True)
    assert schema == {"$id": "x", "uniqueItems": True, "propertyNames": TEXT}
