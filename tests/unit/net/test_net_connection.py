"""Which connection is closed for a new one, for any number of waiting ones."""

from typing import Any

import pytest

from earthshine.net.connection import Waiting

SILENT, BETWEEN, IN_HEAD = 0, 1, 2


class Waits:
    def __init__(self, name: str, more: bool = False) -> None:
        self.name, self.more, self.looks = name, more, 0

    def has_more(self) -> bool:
        self.looks += 1
        return self.more


def put(waiting: Waiting, kind: int, *names: str, more: bool = False) -> dict[str, Any]:
    found = {name: Waits(name, more) for name in names}
    for connection in found.values():
        waiting.put(connection, kind)  # type: ignore[arg-type]
    return found


def order(waiting: Waiting) -> list[str]:
    found: list[Any] = []
    while (connection := waiting.asks_nothing()) is not None:
        found.append(connection)
        waiting.drop(connection)
    return [connection.name for connection in found]


def test_those_that_never_sent_anything_are_closed_first_and_of_a_kind_the_one_that_waited_longest():
    waiting = Waiting()
    put(waiting, IN_HEAD, "a")
    put(waiting, BETWEEN, "b", "c")
    put(waiting, SILENT, "d", "e")
    assert order(waiting) == ["d", "e", "b", "c", "a"]


def test_repeated_wait_starts_again():
    waiting = Waiting()
    found = put(waiting, BETWEEN, "a", "b", "c")
    waiting.put(found["a"], IN_HEAD)
    waiting.put(found["b"], BETWEEN)
    waiting.drop(found["c"])
    waiting.drop(found["c"])
    assert order(waiting) == ["b", "a"]


@pytest.mark.parametrize("n_waiting", [20, 2000])
def test_a_new_connection_costs_few_looks_however_many_wait(n_waiting: int):
    waiting = Waiting()
    found = put(waiting, SILENT, *map(str, range(n_waiting)), more=True)
    assert waiting.asks_nothing() is None
    assert 0 < sum(each.looks for each in found.values()) < 20
    assert waiting.first() is not None


def test_those_that_have_sent_what_was_not_read_yet_are_passed_over():
    waiting = Waiting()
    put(waiting, SILENT, "a", "b", more=True)
    put(waiting, SILENT, "c")
    assert waiting.asks_nothing().name == "c"  # type: ignore[union-attr]
