"""Hostile formats are refused in time, in one sentence, without effect on other replies."""

import random
import threading
from typing import Any

import pytest

from earthshine.errors import OverloadError, TextError
from earthshine.text import Grammars, OutputRule, grammar_compile, grammar_tokens

from .grammars import WEATHER, House


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def _chain(length: int) -> dict[str, Any]:
    links = {str(link): {"items": {"items": {"$ref": f"#/$defs/{link + 1}"}}} for link in range(length)}
    return {"$ref": "#/$defs/0", "$defs": links | {str(length): {"type": "string"}}}


def _records(depth: int) -> dict[str, Any]:
    """Each level holds the next one under 16 names, so that written out it is without end."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        names = {"enum": [str(number) for number in range(16)]}
        schema = {"type": "object", "propertyNames": names, "additionalProperties": schema}
    return schema


def _long_references() -> dict[str, Any]:
    """A short name for a place whose pointer is long, used many times."""
    schema: dict[str, Any] = {"$anchor": "a", "type": "string"}
    for _ in range(10):
        schema = {"properties": {"n" * 4000: schema}}
    return schema | {"anyOf": [{"$ref": "#a"} for _ in range(5000)]}


@pytest.mark.parametrize(
    ("format_", "value", "refusal"),
    [
        ("json_schema", 5, "must be an object"),
        ("json_schema", _nested(2000), "nests more than 32"),
        ("json_schema", _chain(4000), "fewer"),
        ("json_schema", {"enum": [f"v{number}" for number in range(100_000)]}, "characters"),
        ("json_schema", {"const": "x" * 200_000}, "'const'"),
        ("json_schema", {"$ref": "#"}, "nothing can match"),
        ("json_schema", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "nothing can match"),
        ("json_schema", {"$ref": "https://example.com/a.json"}, "nothing is fetched"),
        ("json_schema", {"properties": {"a": {"$ref": "other.json#/b"}}}, "nothing is fetched"),
        ("json_schema", {"$ref": "#/$defs/no"}, "does not exist"),
        ("json_schema", {"not": {}}, 'not supported: "not"'),
        ("json_schema", {"propertyNames": {"not": {}}}, 'not supported: "propertyNames"'),
        ("json_schema", _records(16), "characters|not supported"),
        ("json_schema", {"type": "string", "minLength": 999_999_999_999}, "minLength that is too large"),
        ("json_schema", {"items": {"type": "array", "minItems": 10**12}}, "minItems that is too large"),
        ("json_schema", {"type": "object", "minProperties": 1e300}, "minProperties that is too large"),
        ("json_schema", _long_references(), "shorter names"),
        ("json_schema", {"oneOf": [{"type": "string"}, {"minLength": 3}]}, "anyOf"),
        ("json_schema", {"x-guidance": {"lenient": True}, "not": {}}, 'not supported: "not"'),
        ("json_schema", {"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ("json_schema", {"type": "string", "pattern": "(.*a){100000}", "minLength": 10**6}, "length bounds"),
        ("json_schema", {"const": "\ud800"}, "no form"),
        ("json_schema", {"const": float("nan")}, "no form"),
        ("json_schema", {"minimum": 10**5000, "type": "integer"}, "no form"),
        ("json_schema", {"type": "integer", "multipleOf": 1_000_003}, "multipleOf"),
        ("json_schema", {"type": "integer", "multipleOf": 10**5000}, "multipleOf"),
        ("json_schema", {"type": "integer", "multipleOf": float("inf")}, "multipleOf"),
        ("json_schema", {"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}, "multipleOf"),
        ("regex", "a{1000000000}", "too complex"),
        ("regex", "(" * 3000 + "a" + ")" * 3000, "nested"),
        ("regex", "(a", "unclosed group"),
        ("regex", r"(a)\1", "backreferences"),
        ("regex", r"\ba", "look-ahead"),
        ("regex", "[^\\x00-\\U0010FFFF]", "nothing can match"),
        ("regex", "x" * 9000, "8192"),
        ("regex", "\udfff", "surrogate"),
        ("regex", None, "must be a text"),
        ("grammar", "start: nowhere", "nowhere"),
        ("grammar", "begin: /a/", "no start rule"),
        ("grammar", "start: " + "\n".join(f"r{n}\nr{n}: r{n + 1}" for n in range(1500)), "characters|lines"),
        ("grammar", "start: R0\n" + "\n".join(f"R{n}: R{n + 1} R{n + 1}" for n in range(60)) + '\nR60: "a"', "complex"),
        ("grammar", "start: " + "(" * 5000 + '"a"' + ")" * 5000, "too complex"),
        ("grammar", 'start: "x" start', "too complex"),
        ("grammar", 'start: <|im_end|> "a"', "control tokens"),
        ("grammar", "start: <[*]>", "control tokens"),
        ("grammar", "start: <|nothing|>", "control token"),
        ("grammar", 'start: %json {"multipleOf": 1000003}', "json_schema"),
        ("grammar", 'start: "\ud800"', "surrogate"),
        ("choice", [], "1 to 4096"),
        ("choice", "yes", "1 to 4096"),
        ("choice", ["a", ""], "1 to 4096"),
        ("choice", ["a", 5], "1 to 4096"),
        ("choice", ["\ud800"], "surrogate"),
        ("choice", ["x" * 70_000], "characters"),
        ("choice", [str(number) for number in range(5000)], "1 to 4096"),
    ],
)  # fmt: skip
def test_hostile_forms(house: House, format_: Any, value: Any, refusal: str) -> None:
    with pytest.raises(TextError, match=refusal) as caught:
        house.compile(format=format_, value=value)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_slow_grammars_are_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = house.compile(format="json_schema", value=WEATHER)
    monkeypatch.setattr(grammar_tokens, "_SLOW_SECONDS", -1.0)
    monkeypatch.setattr(grammar_tokens, "_SLOW_TOTAL_SECONDS", 0.0)
    with pytest.raises(TextError, match="too long to follow"):
        house.reply(grammar, 0)


def test_long_chains_do_not_exhaust_the_stack(house: House) -> None:
    """As long as their size allows; on the usual stack of 8 MiB they ended the process."""
    grammar = house.compile(format="json_schema", value=_chain(2200))
    assert house.follows(grammar, "[[[[[[]]]]]]")
    rules = "start: r0\n" + "\n".join(f"r{n}: r{n + 1}" for n in range(490)) + '\nr490: "a"'
    assert house.follows(house.compile(format="grammar", value=rules), "a")


def test_a_reply_fails_alone(house: House) -> None:
    """What exceeds the parser's limits on the way ends that reply with an error."""
    constraint = house.compile(format="regex", value="(.{1,1000}x){1,1000}").start()
    draw = random.Random(0)

    def go_on() -> None:
        for _ in range(5000):
            constraint.accept(draw.choice(house.allowed(constraint.allowed())[1:]))

    with pytest.raises(TextError, match="too complex"):
        go_on()
    assert house.follows(house.compile(format="choice", value=["a"]), "a")


def test_a_compilation_that_takes_too_long_is_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, tokenizer = threading.Event(), house.tokenizer
    grammars = Grammars(tokenizer, house.vocab_size, [house.end])
    monkeypatch.setattr(grammar_compile, "_SECONDS", 0.05)
    monkeypatch.setattr(grammar_compile, "_build", lambda *_: stuck.wait(20))
    for regex in ("a", "b"):
        with pytest.raises(TextError, match="simpler"):
            grammars.compile(OutputRule(format="regex", value=regex))
    with pytest.raises(OverloadError, match="try again"):
        grammars.compile(OutputRule(format="regex", value="c"))
    stuck.set()


@pytest.mark.parametrize("fails", [False, True])
def test_what_took_too_long_is_not_waited_for_again(house: House, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    begun, stuck, ended = [], threading.Event(), threading.Event()
    build, compiler = grammar_compile._build, grammar_compile.Compiler(house.grammars._prepared()[0])

    def slow(*given: Any) -> Any:
        begun.append(given)
        stuck.wait(60)
        if fails:
            raise TextError("it is too complex")
        return build(*given)

    class Slots(threading.BoundedSemaphore):
        def release(self, n: int = 1) -> None:
            super().release(n)
            ended.set()

    compiler._slots = Slots(2)
    monkeypatch.setattr(grammar_compile, "_build", slow)
    monkeypatch.setattr(grammar_compile, "_SECONDS", 0.05)
    for _ in range(5):
        with pytest.raises(TextError, match="takes over"):
            compiler.compile("The regex", "regex", "a")
    assert len(begun) == 1
    stuck.set()
    assert ended.wait(60)
    if fails:
        with pytest.raises(TextError, match="The answer's regex can't be used: it is too complex"):
            compiler.compile("The answer's regex", "regex", "a")
    else:
        assert compiler.compile("The regex", "regex", "a") is compiler.compile("The regex", "regex", "a")
    assert len(begun) == 1
    assert not compiler._late
