"""Grammars of llama.cpp and SGLang allow exactly what they describe."""

import json
import re

import pytest

from earthshine.errors import TextError
from earthshine.text.grammar_gbnf import is_gbnf

from .grammars import House

CHESS = r"""
# moves of one side
root ::= move (", " move){0,2}
move ::= piece? [a-h] [1-8] | castle
piece ::= [KQRBN]
castle ::= "O-O" "-O"?
"""
LIST = r"""root  ::= item+

item ::= "- " [^\r\n\x0b\x0c\x85\u2028\u2029]+ "\n"
"""
JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4})
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


def test_moves(house: House) -> None:
    grammar = house.compile(format="grammar", value=CHESS)
    for text in house.texts(grammar, 8, hurry=0.0):
        assert re.fullmatch(r"(%s)(, (%s)){0,2}" % ((r"[KQRBN]?[a-h][1-8]|O-O(-O)?",) * 2), text), text
    assert house.follows(grammar, "Nf3, O-O, e4")
    assert not house.follows(grammar, "Nf9")
    assert not house.follows(grammar, "a1, a2, a3, a4")


def test_lists(house: House) -> None:
    grammar = house.compile(format="grammar", value=LIST)
    assert house.follows(grammar, "- one\n- zwei, drü\n")
    assert not house.follows(grammar, "- one\n two\n")
    assert not house.follows(grammar, "- \n")


def test_json_as_llama_cpp_ships_it(house: House) -> None:
    grammar = house.compile(format="grammar", value=JSON)
    for text in ('{"a": [1, -2.5e3, {"b": null}], "c": "x\\n\\u00e9 é"}', "{}", '{"a":"" }'):
        json.loads(text)
        assert house.follows(grammar, text), text
    for text in ("[1]", '{"a": tru}', '{"a" 1}', '{"a": "\\x"}', "{,}"):
        assert not house.follows(grammar, text), text
    for text in house.texts(grammar, 6, hurry=0.9):
        json.loads(text)


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        ('root ::= "a" | b\nb ::= "b" b | ""', ["a", "bbb"], ["ab", "ba"]),
        ('root ::= "yes"\n  | "no"', ["yes", "no"], ["yesno"]),
        (r'root ::= "\"\\\n\t\x41\u00e9\U0001F600<%"', ['"\\\n\tA\u00e9\U0001f600<%'], ["A"]),
        ("root ::= [-a] [a-] [a\\-c] [\\]^]", ["-a-]", "a-c^"], ["b-b]", "a-b]"]),
        ("root ::= . [^.]", ["\nx", ".é"], ["x."]),
        ("root ::= [a]{2} [b]{1 ,\n} [c]{ 0, 1 }", ["aab", "aabbbc"], ["ab", "aabcc"]),
        ('root ::= my-rule.1 MyRule\nmy-rule.1 ::= "x"\nMyRule ::= "y"', ["xy"], ["x"]),
        ('root ::= "<|im_end|>"', [], ["x"]),
        ("root ::= ([a] [b])+ # pairs", ["abab"], ["aba"]),
    ],
)
def test_notation(house: House, grammar: str, right: list[str], wrong: list[str]) -> None:
    compiled = house.compile(format="grammar", value=grammar)
    for text in right:
        constraint = compiled.start()
        for token in [*house.tokenizer.encode(text, allow_special=False), house.end]:
            constraint.accept(token)
    for text in wrong:
        assert not house.follows(compiled, text), text


@pytest.mark.parametrize(
    ("grammar", "refusal"),
    [
        ('begin ::= "a"', "no rule named root"),
        ("root ::= nowhere", "no rule named 'nowhere'"),
        ('root ::= "a"\nroot ::= "b"', "two rules named 'root'"),
        ('root ::= "a', "line 1"),
        ('"a"\nroot ::= "b"', "line 1"),
        ('root ::= "a"\nb ::= (?!x)', "can't be"),
        ("root ::= [", "line 1"),
        ("root ::= [^]", "line 1|without any"),
        ("root ::= [\\uD800]", "not a character"),
        ("root ::= [\\UFFFFFFFF]", "not a character"),
        ("root ::= [z-a]", "can't be used"),
        ("root ::= ([a]", "can't be used"),
        ("root ::= * [a]", "can't be used"),
        ("root ::= root", "nothing can match|complex"),
        ("root ::= " + "(" * 7000 + "[a]" + ")" * 7000, "complex|nested|can't be used"),
        ("root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1} r{n + 1}" for n in range(60)) + '\nr60 ::= "a"', "complex"),
        ("root ::= [a]{99999}", "complex"),
        ("root ::= " + "[a] " * 5000, "characters"),
    ],
)
def test_what_can_not_be_read_is_refused(house: House, grammar: str, refusal: str) -> None:
    with pytest.raises(TextError, match=refusal) as caught:
        house.compile(format="grammar", value=grammar)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_lark_with_a_rule_sign_in_a_text_is_lark() -> None:
    assert not is_gbnf('start: NAME " ::= " NAME\nNAME: /[a-z]+/')
    assert is_gbnf('  root  ::= "a"')
    assert is_gbnf('# comment\nroot::="a"')
