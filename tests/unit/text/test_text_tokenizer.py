"""The tiktoken reader over a small vocabulary: exact ids, round trips, cuts, and each malformed file refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from earthshine.errors import TextError
from earthshine.text import Tokenizer, load_tokenizer
from earthshine.text.control import ControlToken, ControlTokens
from earthshine.text.tiktoken_model import PATTERN, TiktokenTokenizer, _Cuts, _steps

Ranks = Callable[[Path, list[bytes]], Path]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PIECES = ("<|im_end|>", "<think>", "<|im_", "end|>", "<", ">", "|", "th", "ink>", "[EOS]", "[", "]", " ", "a", "中")
TANGLED = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


def test_control_tokens_follow_the_ranks(tiny: Tokenizer, tiny_tokens: list[bytes]) -> None:
    """The 23 names lie at Kimi's offsets from the first reserved id; think and tool markers are not special."""
    first = len(tiny_tokens)
    assert tiny.vocab_size == first + 256
    assert tiny.special_id("[BOS]") == first
    assert tiny.special_id("<|im_end|>") == first + 2
    assert tiny.special_id("<|tool_call_end|>") == first + 15
    assert tiny.special_id("</think>") == first + 23
    assert tiny.special_id("[PAD]") == first + 255
    assert tiny.special_id("hello") is None
    assert [tiny.is_special(first + offset) for offset in (2, 5, 11, 22, 255)] == [True, True, False, False, True]
    assert tiny.is_special(0) is False
    assert tiny.decode([first + 5]) == f"<|reserved_token_{first + 5}|>"


def test_pairs_of_lowest_rank_merge_first(tiny: Tokenizer, tiny_tokens: list[bytes]) -> None:
    ids = tiny.encode("hello w", allow_special=True)
    assert [tiny_tokens[i] for i in ids] == [b"hello", b" w"]
    assert tiny.encode("hel", allow_special=True) == [256, ord("l")]


def test_control_text_is_plain_unless_allowed(tiny: Tokenizer) -> None:
    end = tiny.special_id("<|im_end|>")
    assert tiny.encode("a<|im_end|>b", allow_special=True) == [97, end, 98]
    ids = tiny.encode("a<|im_end|>b", allow_special=False)
    assert max(ids) < tiny.vocab_size - 256
    assert tiny.decode(ids) == "a<|im_end|>b"


def test_a_literal_position_inside_a_control_token_makes_it_text(tiny: Tokenizer) -> None:
    end = tiny.special_id("<|im_end|>")
    text = "<|im_end|><|im_end|>"
    assert tiny.encode(text, True, [0, 10]) == [end, end]  # at the edges, not inside
    assert tiny.encode(text, True, [11]) == [end, *tiny.encode("<|im_end|>", False)]
    assert tiny.encode(text, True, [9, 10]) == [*tiny.encode("<|im_end|>", False), end]


@given(text=TEXT | TANGLED, allow=st.booleans())
def test_any_text_round_trips(tiny: Tokenizer, text: str, allow: bool) -> None:
    assert tiny.decode(tiny.encode(text, allow)) == text


def test_a_lone_surrogate_becomes_the_replacement_character(tiny: Tokenizer) -> None:
    assert tiny.decode(tiny.encode("a\ud800b", allow_special=True)) == "a�b"


@given(left=TANGLED, right=TANGLED)
def test_marked_texts_form_no_control_token_with_each_other(tiny: Tokenizer, left: str, right: str) -> None:
    """Neither alone nor side by side, and taking the sentinels out gives the texts back."""
    pieces = (tiny.controls.mark(left, "𐇐") + tiny.controls.mark(right, "𐇐")).split("𐇐")
    literal = [len("".join(pieces[:count])) for count in range(1, len(pieces))]
    assert "".join(pieces) == left + right
    assert tiny.controls.spans(left + right, literal) == []


def _cuts(text: str) -> list[int]:
    return list(_Cuts(text).between(0, len(text)))


def test_cuts_fall_every_400000_characters_and_within_long_runs() -> None:
    assert _cuts("a" * 25_000) == []
    assert _cuts("a" * 25_001) == [25_000]
    assert _cuts("b " + "a" * 60_000 + " ") == [25_002, 50_002]
    assert _cuts("ab" + " " * 25_001) == [25_002]
    assert _cuts("a " * 400_000) == [400_000]
    assert _cuts("a " * 199_999 + "b" * 25_002) == [400_000]  # each chunk counts runs from zero


def test_cuts_of_a_part_are_those_of_the_text_inside_it() -> None:
    text = ("b " + "a" * 60_000 + " ") * 20
    whole = _cuts(text)
    for start, end in ((0, 25_002), (25_001, 25_003), (30_000, 900_000), (400_000, 800_000), (399_999, 800_001)):
        assert list(_Cuts(text).between(start, end)) == [cut for cut in whole if start < cut < end]


SPACED = st.lists(
    st.sampled_from(
        (" ", "  ", "\n", "\r\n", "\t", "\x1c", "\x85", "\u3000", "a", "A", "he", "'s", "!", "7", "中", "é", "\u0301")
    ),
    max_size=60,
).map("".join)


@given(text=SPACED)
def test_steps_change_no_token(kimi_pattern: tiktoken.Encoding, text: str) -> None:
    """Against the library over the whole text, with a step that ends at every border."""
    parts = list(_steps(text, 0, len(text), 1))
    assert "".join(parts) == text
    assert [i for part in parts for i in kimi_pattern.encode_ordinary(part)] == kimi_pattern.encode_ordinary(text)


@pytest.fixture(scope="session")
def kimi_pattern(tiny_tokens: list[bytes]) -> tiktoken.Encoding:
    """Any merge at all across a border would show: every pair of the sampled pieces is a token."""
    ends = [piece.encode() for piece in (" ", "\n", "\t", "a", "A", "!", "7", "中", "\u3000")]
    pairs = [a + b for a in ends for b in ends]
    tokens = dict.fromkeys([*tiny_tokens, *ends, *pairs])
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return tiktoken.Encoding("pairs", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


class Counted:
    """Counts the characters that a library is given to encode."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._encode, self.chars = encode, 0

    def __call__(self, text: str) -> list[int]:
        self.chars += len(text)
        return self._encode(text)


@pytest.mark.parametrize("text", ["hello w " * 500_000, "a" * 4_000_000, "a\n" * 2_000_000, "中" * 4_000_000])
@pytest.mark.parametrize("special", [False, True])
def test_encoding_stops_once_the_limit_is_passed(
    tiny: TiktokenTokenizer, monkeypatch: pytest.MonkeyPatch, text: str, special: bool
) -> None:
    counted = Counted(tiny._bpe.encode_ordinary)
    monkeypatch.setattr(tiny, "_bpe", SimpleNamespace(encode_ordinary=counted))
    ids = tiny.encode(text, special, limit=4096)
    assert len(ids) > 4096
    assert counted.chars < 60_000
    assert tiny.encode(text[:200_000], special)[:4097] == ids[:4097]


@given(text=TEXT | TANGLED | SPACED, special=st.booleans(), limit=st.integers(0, 60))
def test_a_text_within_the_limit_is_encoded_whole(tiny: Tokenizer, text: str, special: bool, limit: int) -> None:
    whole, found = tiny.encode(text, special), tiny.encode(text, special, limit=limit)
    assert found == whole if len(whole) <= limit else len(found) > limit


def test_a_cut_moves_off_a_control_token(tiny: Tokenizer) -> None:
    text = "a" * 24_995 + "<|im_end|>" + "a" * 10
    assert tiny.encode(text, allow_special=True)[24_995] == tiny.special_id("<|im_end|>")


def test_ids_outside_the_vocabulary_are_refused(tiny: Tokenizer) -> None:
    for token_id in (-1, tiny.vocab_size):
        with pytest.raises(TextError, match="outside the vocabulary"):
            tiny.decode_bytes([token_id])


def _corrupt(lines: list[bytes], change: str) -> list[bytes]:
    if change == "base64":
        lines[7] = b"@@@@ 7"
    elif change == "rank":
        lines[7] = lines[7].replace(b" 7", b" 8")
    elif change == "no rank":
        lines[7] = lines[7].split(b" ")[0]
    elif change == "empty token":
        lines[7] = b" 7"
    elif change == "duplicate":
        lines[260] = lines[259].split(b" ")[0] + b" 260"
    elif change == "missing byte":
        lines[7] = b"YWJjZGVm 7"
    elif change == "blank line":
        lines.insert(7, b"")
    elif change == "few lines":
        del lines[200:]
    elif change == "sign":
        lines[7] = lines[7].replace(b" 7", b" +7")
    return lines


CHANGES = {
    "base64": "no valid base64",
    "rank": "the rank 7",
    "no rank": "the rank 7",
    "empty token": "holds 0 bytes",
    "duplicate": "twice",
    "missing byte": "single byte 0x07",
    "blank line": "the rank 7",
    "few lines": "200 lines",
    "sign": "the rank 7",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_malformed_rank_file_is_refused(tmp_path: Path, ranks: Ranks, tiny_tokens: list[bytes], change: str) -> None:
    path = ranks(tmp_path, tiny_tokens) / "tiktoken.model"
    path.write_bytes(b"\n".join(_corrupt(path.read_bytes().splitlines(), change)))
    with pytest.raises(TextError, match=CHANGES[change]):
        load_tokenizer(tmp_path)


def test_names_come_from_the_tokenizer_config(tmp_path: Path, ranks: Ranks, tiny_tokens: list[bytes]) -> None:
    ranks(tmp_path, tiny_tokens)
    first = len(tiny_tokens)
    added = {str(first + 9): {"content": "<|x|>", "special": False}, str(first): {"content": "[B]", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.special_id("<|x|>"), tokenizer.is_special(first + 9)) == (first + 9, False)
    assert (tokenizer.special_id("[B]"), tokenizer.is_special(first)) == (first, True)
    assert tokenizer.special_id("[EOS]") is None
    assert tokenizer.decode([first + 1]) == f"<|reserved_token_{first + 1}|>"


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        ({"5": {"content": "<a>"}}, "name an id from"),
        ({"x": {"content": "<a>"}}, "name an id from"),
        ({"299": {"content": ""}}, "content of 2"),
        ({"299": {"content": 5}}, "content of 2"),
        ({"299": "<a>"}, "content of 2"),
        ({"299": {"content": "<a>", "special": 1}}, "special flag"),
        ({"299": {"content": "<a>"}, "300": {"content": "<a>"}}, "repeats another"),
        ([], "must be an object"),
    ],
)
def test_malformed_names_are_refused(
    tmp_path: Path, ranks: Ranks, tiny_tokens: list[bytes], added: object, reason: str
) -> None:
    ranks(tmp_path, tiny_tokens)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(TextError, match=reason):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"added_tokens_decoder": ' + b"1" * 9000])
def test_a_malformed_tokenizer_config_is_refused(
    tmp_path: Path, ranks: Ranks, tiny_tokens: list[bytes], content: bytes
) -> None:
    ranks(tmp_path, tiny_tokens)
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(TextError, match="tokenizer_config"):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="no tokenizer"):
        load_tokenizer(tmp_path)


def test_links_that_leave_the_folder_are_refused(tmp_path: Path, ranks: Ranks, tiny_tokens: list[bytes]) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model").mkdir()
    ranks(tmp_path / "elsewhere", tiny_tokens)
    link = tmp_path / "model" / "tiktoken.model"
    link.symlink_to(tmp_path / "elsewhere" / "tiktoken.model")
    with pytest.raises(TextError, match="leaves the model's folder"):
        load_tokenizer(tmp_path / "model")
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(TextError, match=r"can't be opened"):
        load_tokenizer(tmp_path / "model")


def test_links_of_the_hub_cache_are_followed(tmp_path: Path, ranks: Ranks, tiny_tokens: list[bytes]) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    os.rename(ranks(blobs, tiny_tokens) / "tiktoken.model", blobs / "0123")
    (snapshot / "tiktoken.model").symlink_to("../../blobs/0123")
    assert load_tokenizer(snapshot).vocab_size == len(tiny_tokens) + 256


def test_file_that_is_not_regular_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tiktoken.model")
    with pytest.raises(TextError, match="not a regular file"):
        load_tokenizer(tmp_path)


def test_an_oversized_file_is_refused_before_it_is_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "tiktoken.model").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(TextError, match="more than 67108864 bytes"):
        load_tokenizer(tmp_path)


def test_the_longest_control_token_wins() -> None:
    controls = ControlTokens([ControlToken(1, "<a>", True), ControlToken(2, "<a><b>", True)])
    assert controls.spans("<a><b><a>") == [(0, 6, 2), (6, 9, 1)]
