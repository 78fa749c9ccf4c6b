"""Control tokens: texts that stand for single ids, such as `<|im_end|>`. Finds them, and distinguishes those that a
template wrote from the same text typed by a user.

Invariant: `mark` puts sentinel characters into a user's text; if the sentinels' positions are then passed to `spans` as
`literal`, no character of that text is part of a control token. Refused: duplicate ids or texts, and empty texts.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from earthshine.errors import TextError
from earthshine.untrusted import shown


@dataclass(frozen=True, slots=True)
class ControlToken:
    """One id with a text of its own. With `special`, `skip_special_tokens` leaves it out of the output."""

    id: int
    text: str
    special: bool


class ControlTokens:
    """The control tokens of one tokenizer."""

    def __init__(self, tokens: Iterable[ControlToken]) -> None:
        self.by_id: dict[int, ControlToken] = {}
        self.by_text: dict[str, ControlToken] = {}
        for token in tokens:
            if not token.text or token.text in self.by_text or token.id in self.by_id:
                raise TextError(
                    f"Control token {shown(token.text)} (id {token.id}) is empty or repeats another; each needs a text."
                )
            self.by_id[token.id] = self.by_text[token.text] = token
        texts = sorted(self.by_text, key=lambda text: (-len(text), text))  # longest first: a regex takes the first
        anything = "|".join(re.escape(text) for text in texts) or r"(?!)"
        self._pattern = re.compile(anything)
        self._starts = re.compile(f"(?={anything})")
        self._heads = frozenset(text[:size] for text in texts for size in range(1, len(text)))
        self._tails = frozenset(text[size:] for text in texts for size in range(1, len(text)))
        self._longest = max(map(len, texts), default=1)
        self._initials = re.compile("|".join({re.escape(text[0]) for text in texts}) or r"(?!)")
        self._finals = re.compile("|".join({re.escape(text[-1]) for text in texts}) or r"(?!)")

    def spans(self, text: str, literal: Sequence[int] = ()) -> list[tuple[int, int, int]]:
        """(start, end, id) of each control token, leftmost first; none with a position of `literal` inside it.

        `literal` is ascending; position p is between characters p - 1 and p.
        """
        found: list[tuple[int, int, int]] = []
        at = 0
        while match := self._pattern.search(text, at):
            start, end = match.span()
            after = bisect_right(literal, start)
            if after < len(literal) and literal[after] < end:
                at = start + 1
            else:
                found.append((start, end, self.by_text[match[0]].id))
                at = end
        return found

    def mark(self, text: str, sentinel: str) -> str:
        """The text with a sentinel inside every control token, and at an end that a control token could extend past.

        The ends matter because a template may print two strings next to each other: `<|im_` and `end|>`.
        """
        head, tail = text[: self._longest], text[-self._longest :]
        before = any(head[: match.end()] in self._tails for match in self._finals.finditer(head))
        after = any(tail[match.start() :] in self._heads for match in self._initials.finditer(tail))
        pieces = [sentinel] if before else []
        at = 0
        for match in self._starts.finditer(text) if self._pattern.search(text) else ():
            pieces += [text[at : match.start() + 1], sentinel]
            at = match.start() + 1
        pieces.append(text[at:])
        if after:
            pieces.append(sentinel)
        return "".join(pieces)
