"""Translates grammars in GBNF (llama.cpp) and EBNF (SGLang) to llguidance's variant of Lark.

A rule is `name ::= ...`, and `root` is the first. Rules that use no others become terminals, which the library needs.
It matches terminals greedily: where two overlap, it allows less than the grammar, never more. Refused, as TextError:
what is neither GBNF nor EBNF, missing rules, and look-ahead. The caller limits the size.
"""

import json
import re
from typing import NamedTuple

from earthshine.errors import TextError
from earthshine.untrusted import shown

_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
    |(?P<rule>[A-Za-z_][\w.\-]*)\s*::=
    |(?P<name>[A-Za-z_][\w.\-]*)
    |"(?P<text>(?:[^"\\]|\\.)*)"
    |\[(?P<letters>\^?(?:[^\]\\]|\\.)+)\]
    |\{\s*(?P<least>\d{1,5})\s*(?P<most>,\s*(?:\d{1,5}\s*)?)?\}
    |(?P<any>\.)
    |(?P<sign>[|()*+?])""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)
_LETTER = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|(.)", re.DOTALL)
_RULE_HEAD = re.compile(r"^[ \t]*[A-Za-z_][A-Za-z0-9_.-]*[ \t]*::=", re.MULTILINE)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


class _Part(NamedTuple):
    """`name`, if it is the name of a rule, otherwise `text` in Lark's notation."""

    text: str
    name: str = ""


def is_gbnf(grammar: str) -> bool:
    """Whether this is GBNF or EBNF, and not Lark."""
    return _RULE_HEAD.search(grammar) is not None


def lark_from_gbnf(what: str, grammar: str) -> str:
    """The grammar in Lark's notation; `what` names it in messages."""
    rules = _rules(what, grammar)
    if "root" not in rules:
        raise TextError(f"{what} has no rule named root, with which an answer begins.")
    for parts in rules.values():
        for part in parts:
            if part.name and part.name not in rules:
                raise TextError(f"{what} has no rule named {shown(part.name)}.")
    flat = _flat(rules)
    names = {name: f"{'R' if name in flat else 'r'}{number}" for number, name in enumerate(rules)} | {"root": "start"}
    lines = [
        f"{names[name]}: {' '.join(names[part.name] if part.name else part.text for part in parts)}"
        for name, parts in rules.items()
    ]
    return "\n".join(lines)


def _rules(what: str, grammar: str) -> dict[str, list[_Part]]:
    rules: dict[str, list[_Part]] = {}
    parts: list[_Part] | None = None
    at = 0
    while at < len(grammar):
        found = _TOKEN.match(grammar, at)
        if found is None or (parts is None and found["space"] is None and found["rule"] is None):
            line = grammar.count("\n", 0, at) + 1
            raise TextError(f"{what} can't be read in line {line}, at {shown(grammar[at : at + 20])}.")
        at = found.end()
        if found["rule"] is not None:
            if found["rule"] in rules:
                raise TextError(f"{what} has two rules named {shown(found['rule'])}.")
            parts = rules.setdefault(found["rule"], [])
        elif found["space"] is None and parts is not None:
            parts.append(_Part("", found["name"]) if found["name"] else _Part(_lark(what, found)))
    return {name: parts or [_Part('""')] for name, parts in rules.items()}


def _lark(what: str, found: re.Match[str]) -> str:
    if found["text"] is not None:
        text = json.dumps("".join(letter for letter, _ in _letters(what, found["text"])))
        return text.replace("<", r"\u003c").replace("%", r"\u0025")
    if found["letters"] is not None:
        return f"/{_class(what, found['letters'])}/"
    if found["least"] is not None:
        most = "".join((found["most"] or "").split())
        return f"{{{found['least']}{most}}}"
    return "/(?s:.)/" if found["any"] else found["sign"]


def _letters(what: str, text: str) -> list[tuple[str, bool]]:
    """(character, whether it was escaped) for each."""
    letters = []
    for short, middle, long, one, plain in _LETTER.findall(text):
        code = int(short or middle or long or "0", 16)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise TextError(f"{what} names {shown(text)}, which holds a code that is not a character.")
        letters.append((plain or _ESCAPES.get(one, one) or chr(code), not plain))
    return letters


def _class(what: str, text: str) -> str:
    """A class of characters; a dash between two of them that is not escaped is a range."""
    negated = text.startswith("^")
    letters = _letters(what, text[negated:])
    if not letters:
        raise TextError(f"{what} has a class of characters without any.")
    last = len(letters) - 1
    spelt = [
        "-" if letter == "-" and not escaped and 0 < at < last else f"\\u{{{ord(letter):X}}}"
        for at, (letter, escaped) in enumerate(letters)
    ]
    return f"[{'^' if negated else ''}{''.join(spelt)}]"


def _flat(rules: dict[str, list[_Part]]) -> set[str]:
    """The rules that are not recursive: those that use only rules of this set."""
    flat: set[str] = set()
    while True:
        found = {
            name
            for name, parts in rules.items()
            if name not in flat and name != "root" and all(not part.name or part.name in flat for part in parts)
        }
        if not found:
            return flat
        flat |= found
