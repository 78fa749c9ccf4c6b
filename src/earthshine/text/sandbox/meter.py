"""What one rendering of a template may spend: characters made, items held, and processor time of its thread.

Invariant: every operation that a template can reach charges for what it makes, before making it where the size can be
foreseen, so that memory and time stay bounded whatever the template does. Overspending raises `Overspent`.
"""

import time
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined

MAX_TEXT = 16 << 20  # characters of one text: about four million tokens
MAX_ITEMS = 200_000  # of one list
MAX_INT_BITS = 4096
MAX_DEPTH = 64
_BUDGET = 64 << 20  # characters made in one rendering, 16 added for each operation
_MAX_NODES = 1 << 20  # values inside one list or mapping, counted with repetition
_SECONDS = 1.0
_SECONDS_A_MESSAGE = 1e-4  # Kimi's template takes about 4e-5
_OPERATION = 16
_CONTAINERS = (list, tuple, dict)
_PLAIN = (str, int, float, type(None), Undefined)  # int covers bool


class Overspent(SecurityError):
    """The template asks for more text, items or time than a rendering may use."""


class Meter:
    """The account of one rendering; not shared between threads."""

    def __init__(self, n_messages: int = 0) -> None:
        self._left = _BUDGET
        self._until = time.thread_time() + _SECONDS + n_messages * _SECONDS_A_MESSAGE
        self._n_unchecked = 0

    def charge(self, size: int) -> None:
        """Pays for `size` characters or items about to be made, and now and then looks at the clock."""
        self._left -= size + _OPERATION
        if self._left < 0:
            raise Overspent("it makes more text than a rendering may")
        self.work(size)

    def work(self, size: int) -> None:
        """Notes a pass over `size` characters or items that makes nothing."""
        self._n_unchecked += 1 + (size >> 12)
        if self._n_unchecked >= 64:
            self._n_unchecked = 0
            if time.thread_time() > self._until:
                raise Overspent("it takes longer than a rendering may")

    def text(self, size: int) -> None:
        """Pays for one text of `size` characters."""
        if size > MAX_TEXT:
            raise Overspent(f"it makes a text of more than {MAX_TEXT} characters")
        self.charge(size)

    def items(self, count: int) -> None:
        """Pays for one list of `count` items."""
        if count > MAX_ITEMS:
            raise Overspent(f"it makes a list of more than {MAX_ITEMS} items")
        self.charge(8 * count)

    def number(self, value: Any) -> Any:
        """Passes a number on; integers are bounded."""
        if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
            raise Overspent(f"it makes an integer of more than {MAX_INT_BITS} bits")
        return value

    def size(self, value: Any) -> int:
        """Characters of a value as text, about; walks lists and mappings.

        Shared parts count each time they are met, since comparing, hashing and printing meet them each time too.
        """
        if isinstance(value, str):
            self.work(len(value))
            return len(value)
        total, n_nodes, waiting = 0, 0, [(value, 0)]
        while waiting:
            node, depth = waiting.pop()
            n_nodes += 1
            if n_nodes & 63 == 0:
                self.work(64)
            if isinstance(node, str):
                total += len(node) + 2
            elif isinstance(node, _CONTAINERS):
                if depth >= MAX_DEPTH or n_nodes + len(waiting) + 2 * len(node) > _MAX_NODES:
                    raise Overspent("it builds a list or mapping that is too deep or too large")
                total += 4 * len(node) + 2
                waiting.extend((child, depth + 1) for child in node)
                if isinstance(node, dict):
                    waiting.extend((child, depth + 1) for child in node.values())
            elif isinstance(node, _PLAIN):
                total += 24
            else:
                raise Overspent(f"it uses a {type(node).__name__} as a value")
            if total > MAX_TEXT:
                raise Overspent(f"it makes a text of more than {MAX_TEXT} characters")
        self.work(total)
        return total
