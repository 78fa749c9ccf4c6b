"""The longest common prefix of token sequences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earthshine.kv import common_prefix


def test_it_ends_at_the_first_difference_or_the_shorter_end():
    assert common_prefix([], []) == 0
    assert common_prefix([1, 2, 3], [1, 2, 3]) == 3
    assert common_prefix([1, 2], [1, 2, 3]) == 2
    assert common_prefix([1, 2, 3], [1, 9, 3]) == 1
    assert common_prefix([4], [5]) == 0
    assert common_prefix((1, 2, 3), [1, 2, 4]) == 2


@pytest.mark.parametrize("position", [0, 4095, 4096, 4097, 8191, 9999])
def test_a_difference_is_found_on_either_side_of_a_block(position):
    one = list(range(10000))
    other = list(one)
    other[position] = -1
    assert common_prefix(one, other) == position


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 2), max_size=30))
def test_it_agrees_with_the_definition(one, other):
    n = common_prefix(one, other)
    assert one[:n] == other[:n]
    assert n == min(len(one), len(other)) or one[n] != other[n]


class _Counted(list):
    """A list that counts how it is read."""

    slices = single = 0

    def __getitem__(self, index):
        if isinstance(index, slice):
            self.slices += 1
        else:
            self.single += 1
        return super().__getitem__(index)

    def __iter__(self):
        self.single += len(self)
        return super().__iter__()


def test_256k_tokens_are_compared_in_blocks_and_not_one_by_one():
    one, other = (_Counted(i * 7919 % 163840 for i in range(262144)) for _ in range(2))
    assert common_prefix(one, other) == 262144
    assert [(seen.slices, seen.single) for seen in (one, other)] == [(64, 0)] * 2
