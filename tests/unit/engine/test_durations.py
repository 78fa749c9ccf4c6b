"""How long prefill passes are expected to take, and how prompts share one."""

import pytest

from earthshine.engine.durations import Durations, fair_shares


@pytest.mark.parametrize(
    ("wanted", "room", "shares"),
    [
        ([5, 100, 100], 45, [5, 20, 20]),
        ([1, 1, 1], 2, [1, 1, 0]),
        ([10], 64, [10]),
        ([100, 3, 50], 10, [4, 3, 3]),
        ([], 8, []),
        ([7, 7], 0, [0, 0]),
    ],
)
def test_shares_are_even_and_use_all_room(wanted, room, shares):
    assert fair_shares(wanted, room) == shares


def test_prefill_is_never_expected_shorter_than_seen():
    durations = Durations()
    assert durations.prefill_seconds(10) is None
    durations.add_prefill(256, 2.0)
    assert durations.prefill_seconds(100) == 2.0
    assert durations.prefill_seconds(512) == 4.0
    assert durations.prefill_tokens(1.0) == 128


@pytest.mark.parametrize("tokens", [4097, 8191, 8192])
def test_the_same_prompt_is_expected_to_take_what_it_took(tokens):
    durations = Durations()
    durations.add_prefill(tokens, 41.0)
    assert durations.prompt_seconds(tokens, 8192, by_token=True) == pytest.approx(41.0)
    assert durations.prefill_seconds(2 * tokens) == pytest.approx(82.0)
    assert durations.prefill_tokens(41.0) == pytest.approx(tokens, abs=1)
