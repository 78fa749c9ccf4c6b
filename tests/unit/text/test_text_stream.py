"""Streaming: text appears as soon as it is final, and is never changed afterwards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earthshine.errors import TextError
from earthshine.text import Detokenizer, StopStrings, Tokenizer


def test_a_character_appears_with_its_last_byte(tiny: Tokenizer) -> None:
    stream = Detokenizer(tiny)
    assert [stream.push(byte) for byte in "é🙂a".encode()] == ["", "é", "", "", "", "🙂", "a"]
    assert stream.flush() == ""


def test_invalid_bytes_become_replacement_characters(tiny: Tokenizer) -> None:
    stream = Detokenizer(tiny)
    assert [stream.push(byte) for byte in b"\xffa\xe4\xb8b"] == ["�", "a", "", "", "�b"]
    assert stream.push(0xF0) == ""
    assert stream.flush() == "�"
    assert stream.flush() == ""


@given(ids=st.lists(st.integers(0, 528), max_size=30), skip=st.booleans())
def test_pieces_joined_equal_the_whole_decode(tiny: Tokenizer, ids: list[int], skip: bool) -> None:
    stream = Detokenizer(tiny, skip_special=skip)
    kept = [token_id for token_id in ids if not (skip and tiny.is_special(token_id))]
    assert "".join(map(stream.push, ids)) + stream.flush() == tiny.decode(kept)


def test_special_ids_are_skipped_and_markers_kept(tiny: Tokenizer) -> None:
    stream = Detokenizer(tiny)
    end, think = tiny.special_id("<|im_end|>"), tiny.special_id("<think>")
    assert end is not None
    assert think is not None
    assert (stream.push(end), stream.push(think)) == ("", "<think>")
    assert Detokenizer(tiny, skip_special=False).push(end) == "<|im_end|>"


def test_an_unknown_id_is_refused(tiny: Tokenizer) -> None:
    with pytest.raises(TextError, match="outside the vocabulary"):
        Detokenizer(tiny).push(tiny.vocab_size)


def test_text_that_may_begin_a_stop_is_held_back() -> None:
    stops = StopStrings(["END", "\n\n"])
    assert stops.push("a E") == ("a ", False)
    assert stops.push("N") == ("", False)
    assert stops.push("x\n") == ("ENx", False)
    assert stops.push("y END z") == ("\ny ", True)
    assert stops.push("more") == ("", True)
    assert stops.flush() == ""


def test_held_text_comes_out_at_the_end() -> None:
    stops = StopStrings(["END"])
    assert stops.push("the EN") == ("the ", False)
    assert stops.flush() == "EN"


def test_the_stop_that_is_complete_first_counts() -> None:
    assert StopStrings(["abcd", "bc"]).push("xabcd") == ("xa", True)
    assert StopStrings(["bc", "abc"]).push("xabc") == ("x", True)


def _first_stop(text: str, stops: list[str]) -> str | None:
    """The text before the stop that is complete first, by trying each prefix; None without one."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return None


@given(pieces=st.lists(st.text("ab", max_size=4), max_size=8), stops=st.lists(st.text("ab", min_size=1, max_size=4)))
def test_nothing_is_lost_and_nothing_passes_a_stop(pieces: list[str], stops: list[str]) -> None:
    """Whatever the pieces, the result is that of the whole text at once."""
    search = StopStrings(stops)
    results = [search.push(piece) for piece in pieces]
    out = "".join(text for text, _ in results) + search.flush()
    expected = _first_stop("".join(pieces), stops)
    assert out == ("".join(pieces) if expected is None else expected)
    assert any(stopped for _, stopped in results) is (expected is not None)


def test_a_stop_that_is_complete_too_early_is_text() -> None:
    stops = StopStrings(["END", "\n"])
    assert stops.push("END\nEN", may_end=False) == ("END\n", False)
    assert stops.push("D more") == ("", True)
    early = StopStrings(["END"])
    assert early.push("END", may_end=False) == ("END", False)
    assert early.push(" of it. END.") == (" of it. ", True)


@given(
    pieces=st.lists(st.text("ab", max_size=4), max_size=8),
    stops=st.lists(st.text("ab", min_size=1, max_size=4)),
    n_early=st.integers(0, 8),
)
def test_only_stops_that_end_after_the_early_pieces_count(pieces: list[str], stops: list[str], n_early: int) -> None:
    search, text, early = StopStrings(stops), "".join(pieces), len("".join(pieces[:n_early]))
    results = [search.push(piece, may_end=at >= n_early) for at, piece in enumerate(pieces)]
    out = "".join(shown for shown, _ in results) + search.flush()
    ends = [
        (end, end - len(stop)) for end in range(early + 1, len(text) + 1) for stop in stops if text[:end].endswith(stop)
    ]
    assert out == (text[: min(ends)[1]] if ends else text)
    assert any(stopped for _, stopped in results) is bool(ends)
