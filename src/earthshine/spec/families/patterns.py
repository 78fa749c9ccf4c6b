r"""Whether a list of module names and regular expressions from a config matches a name, in bounded time and space.

The expressions are untrusted, and Python's `re` backtracks: `(a+)+$` takes exponential time. Here a list
becomes one automaton, whose states are made as names need them, so that a name costs one step per character. No library
that the project uses offers such an engine for plain matching.

Covers literals, escapes, classes, groups, alternatives and counts, which is all that published lists use; `\d` and `\w`
are those of ASCII, as names are. Look-around, back-references and expressions that need more than MAX_NODES nodes or
MAX_WORK steps raise PatternError.
"""

from collections.abc import Iterable
from dataclasses import dataclass

MAX_CHARACTERS = 512  # of one expression; published ones have up to 60
MAX_NODES = 20_000
MAX_WORK = 4_000_000  # visits of nodes and steps of names, about two seconds; Kimi-K2.6's list takes 8,303
_MAX_DEPTH = 20
_MAX_COUNT = 1000
_ACCEPT = 0
_DIGITS = frozenset("0123456789")
_WORDS = _DIGITS | frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_CLASSES = {"d": (_DIGITS, False), "w": (_WORDS, False), "D": (_DIGITS, True), "W": (_WORDS, True)}
_SPECIAL = frozenset("()[]{}|*+?.^$\\")

State = frozenset[int]


class PatternError(ValueError):
    """An expression that can't be evaluated; the message says why."""


@dataclass(frozen=True, slots=True)
class One:
    """One character, of `characters` or, `negated`, of all others."""

    characters: frozenset[str]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """The end of the name."""


@dataclass(frozen=True, slots=True)
class Row:
    parts: "tuple[Expression, ...]"


@dataclass(frozen=True, slots=True)
class Either:
    choices: "tuple[Expression, ...]"


@dataclass(frozen=True, slots=True)
class Repeat:
    part: "Expression"
    least: int
    most: int | None


Expression = One | End | Row | Either | Repeat
ANY = One(frozenset(), negated=True)


def literal(text: str) -> Row:
    """The characters of `text`, none of them special."""
    return Row(tuple(One(frozenset(character)) for character in text))


def parse(text: str) -> Expression:
    """A regular expression in Python's notation; `^` only where it begins. Raises PatternError."""
    if len(text) > MAX_CHARACTERS:
        raise PatternError(f"it has more than {MAX_CHARACTERS} characters")
    parser = _Parser(text.removeprefix("^"))
    found = parser.alternatives(0)
    if parser.at < len(parser.text):
        raise PatternError("a parenthesis is closed that was not opened")
    return found


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _take(self) -> str:
        character = self._peek()
        if not character:
            raise PatternError("it ends too early")
        self.at += 1
        return character

    def alternatives(self, depth: int) -> Expression:
        if depth > _MAX_DEPTH:
            raise PatternError("its groups are nested too deep")
        choices = [self._row(depth)]
        while self._peek() == "|":
            self.at += 1
            choices.append(self._row(depth))
        return choices[0] if len(choices) == 1 else Either(tuple(choices))

    def _row(self, depth: int) -> Expression:
        parts: list[Expression] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._counted(self._atom(depth)))
        return Row(tuple(parts))

    def _atom(self, depth: int) -> Expression:
        character = self._take()
        if character == "(":
            return self._group(depth)
        if character == "[":
            return self._class()
        if character == ".":
            return ANY
        if character == "$":
            return End()
        if character == "\\":
            return self._escaped()
        if character in _SPECIAL - {"}", "]", "{"}:
            raise PatternError(f"{character} stands where it has no meaning here")
        return One(frozenset(character))

    def _group(self, depth: int) -> Expression:
        if self._peek() == "?" and self.text[self.at : self.at + 2] != "?:":
            raise PatternError("look-around, names and flags of groups are not implemented")
        self.at += 2 if self._peek() == "?" else 0
        inner = self.alternatives(depth + 1)
        if self._peek() != ")":
            raise PatternError("a parenthesis is not closed")
        self.at += 1
        return inner

    def _escaped(self) -> One:
        character = self._take()
        if character in _CLASSES:
            return One(*_CLASSES[character])
        if character.isalnum():
            raise PatternError(f"\\{character} is not implemented")
        return One(frozenset(character))

    def _class(self) -> One:
        negated = self._peek() == "^"
        self.at += negated
        found: set[str] = set()
        while self._peek() != "]" or not found:
            low = self._member()
            if len(low) == 1 and self._peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("", "]"):
                self.at += 1
                high = self._member()
                if len(high) != 1 or not ord(min(low)) <= ord(min(high)) < 256:
                    raise PatternError("a range of characters has no meaning")
                low = frozenset(map(chr, range(ord(min(low)), ord(min(high)) + 1)))
            found |= low
        self.at += 1
        return One(frozenset(found), negated)

    def _member(self) -> frozenset[str]:
        character = self._take()
        if character != "\\":
            return frozenset(character)
        one = self._escaped()
        if one.negated:
            raise PatternError("a negated class within a class is not implemented")
        return one.characters

    def _counted(self, part: Expression) -> Expression:
        character = self._peek()
        if character not in ("*", "+", "?", "{"):
            return part
        if character == "{":
            least, most = self._counts()
        else:
            self.at += 1
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[character]
        if self._peek() == "?":  # lazy: another search for the same answer
            self.at += 1
        if self._peek() in ("*", "+", "{") and self._peek():
            raise PatternError("a count follows a count")
        return Repeat(part, least, most)

    def _counts(self) -> tuple[int, int | None]:
        inside, closed, _ = self.text[self.at + 1 :].partition("}")
        low, comma, high = inside.partition(",")
        numbers = [number for number in (low, high) if number]
        if not closed or not numbers or not all(n.isascii() and n.isdigit() and len(n) <= 4 for n in numbers):
            raise PatternError("a count in braces has no meaning")
        self.at += len(inside) + 2
        least = int(low or 0)
        most = (int(high) if high else None) if comma else least
        if max(least, most or 0) > _MAX_COUNT or (most is not None and most < least):
            raise PatternError("a count in braces is too large or has no meaning")
        return least, most


class Patterns:
    """Expressions as one automaton: `after` reads a piece of a name, `matches` says whether any expression matches.

    As with `re.match`, an expression matches where a name begins with what it describes. A state may be kept and read
    on from, so that names with a common beginning share its cost.
    """

    def __init__(self, expressions: Iterable[Expression]) -> None:
        self._nodes: list[tuple[One | End | None, tuple[int, ...]]] = [(None, ())]
        self._after: dict[tuple[State, str], State] = {}
        self._accepted: dict[State, bool] = {}  # whether a name may end there
        self._work = 0
        self.start = self._closure([self._build(expression, _ACCEPT) for expression in expressions])

    def after(self, state: State, text: str) -> State:
        """The state after `text` is read from `state`. Raises PatternError beyond MAX_WORK."""
        self._spend(1)
        known = self._after.get((state, text))
        if known is None:
            self._spend(len(text))
            known = state
            for character in text:
                known = self._step(known, character)
            self._after[state, text] = known
        return known

    def matches(self, state: State) -> bool:
        """Whether a name that ends in `state` matches."""
        known = self._accepted.get(state)
        if known is None:
            self._spend(1 + len(state))
            known = self._accepted[state] = _ACCEPT in self._closure(state, at_end=True)
        return known

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > MAX_WORK:
            raise PatternError("it takes too much work to evaluate")

    def _add(self, symbol: One | End | None, targets: tuple[int, ...]) -> int:
        if len(self._nodes) >= MAX_NODES:
            raise PatternError("it is too large to evaluate")
        self._nodes.append((symbol, targets))
        return len(self._nodes) - 1

    def _build(self, part: Expression, after: int) -> int:
        """The node at which `part` begins, if `after` follows it."""
        if isinstance(part, (One, End)):
            return self._add(part, (after,))
        if isinstance(part, Row):
            for inner in reversed(part.parts):
                after = self._build(inner, after)
            return after
        if isinstance(part, Either):
            return self._add(None, tuple(self._build(choice, after) for choice in part.choices))
        return self._repeated(part, after)

    def _repeated(self, part: Repeat, after: int) -> int:
        entry = after
        if part.most is None:
            entry = self._add(None, ())
            self._nodes[entry] = (None, (self._build(part.part, entry), after))
        for _ in range((part.most or 0) - part.least if part.most is not None else 0):
            entry = self._add(None, (self._build(part.part, entry), after))
        for _ in range(part.least):
            entry = self._build(part.part, entry)
            self._add(None, ())  # counted, so that repeats of nothing end too
        return entry

    def _closure(self, nodes: Iterable[int], *, at_end: bool = False) -> State:
        """The nodes that are reached without reading; at a name's end, also through those that ask for it."""
        found, waiting = set[int](), list(nodes)
        while waiting:
            node = waiting.pop()
            if node == _ACCEPT:
                return frozenset((_ACCEPT,))  # whatever follows
            if node not in found:
                found.add(node)
                symbol, targets = self._nodes[node]
                if symbol is None or (at_end and isinstance(symbol, End)):
                    waiting += targets
        self._spend(len(found))
        return frozenset(node for node in found if self._nodes[node][0] is not None)

    def _step(self, state: State, character: str) -> State:
        if _ACCEPT in state:
            return state
        key = (state, character)
        known = self._after.get(key)
        if known is None:
            self._spend(1 + len(state))
            known = self._closure(
                targets[0]
                for symbol, targets in map(self._nodes.__getitem__, state)
                if isinstance(symbol, One) and (character in symbol.characters) != symbol.negated
            )
            self._after[key] = known
        return known
