"""Tokenizers from tokenizer.json: control tokens under our rule, and streaming with both kinds of decoder."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earthshine.errors import TextError
from earthshine.text import Content, Detokenizer, RegionParser, Tokenizer, load_tokenizer
from earthshine.text.hugging_face import _ALPHABET

LETTERS = {byte: letter for letter, byte in _ALPHABET.items()}


def _added(token_id: int, content: str, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, "special": special, **flags}


def _byte_level() -> dict[str, Any]:
    vocab = {LETTERS[byte]: byte for byte in range(256)} | {"he": 256, "hell": 257, "ll": 258}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [
            _added(259, "<|end|>", True),
            _added(260, "<think>", False),
            _added(261, "</think>", False),
            _added(262, "    ", False),
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": [["h", "e"], ["l", "l"], ["he", "ll"]]},
    }


def _metaspace() -> dict[str, Any]:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"helowrd", "he", "ll", "▁w"]
    return {
        "version": "1.0",
        "added_tokens": [_added(0, "<unk>", True), _added(1, "<s>", True), _added(2, "</s>", True)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "vocab": {piece: number for number, piece in enumerate(pieces)},
            "merges": [["h", "e"], ["l", "l"], ["▁", "w"]],
            "unk_token": "<unk>",
            "byte_fallback": True,
            "fuse_unk": True,
        },
    }


def _load(folder: Path, data: dict[str, Any]) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return _load(tmp_path_factory.mktemp("bytes"), _byte_level())


@pytest.fixture(scope="module")
def metaspace(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return _load(tmp_path_factory.mktemp("spaces"), _metaspace())


def test_control_tokens_of_a_byte_level_vocabulary(byte_level: Tokenizer) -> None:
    """Markers control whatever their flag says; a run of spaces stays part of the ordinary vocabulary."""
    assert byte_level.vocab_size == 263
    assert (byte_level.special_id("<|end|>"), byte_level.is_special(259)) == (259, True)
    assert (byte_level.special_id("<think>"), byte_level.is_special(260)) == (260, False)
    assert byte_level.special_id("    ") is None
    assert byte_level.encode("hell<think>\n<|end|>", True) == [257, 260, 10, 259]
    assert byte_level.encode("a    b", True) == byte_level.encode("a    b", False) == [97, 262, 98]


def test_control_text_is_plain_unless_allowed(byte_level: Tokenizer, metaspace: Tokenizer) -> None:
    for tokenizer, text in ((byte_level, "he<think></think>he<|end|>"), (metaspace, "he</s>")):
        ids = tokenizer.encode(text, allow_special=False)
        assert not set(ids) & set(tokenizer.controls.by_id)
        assert tokenizer.decode(ids) == text


def test_literal_positions_are_honoured(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("<think>he<think>", True, [10])
    assert ids == [260, 256, *byte_level.encode("<think>", False)]


def test_a_control_token_inside_the_models_vocabulary_is_kept_apart(tmp_path: Path) -> None:
    """Where merges can build a control token's text, plain text still avoids its id."""
    data = _byte_level()
    data["model"]["vocab"] |= {"<x": 259, "<x>": 260}
    data["model"]["merges"] += [["<", "x"], ["<x", ">"]]
    data["pre_tokenizer"]["use_regex"] = False
    data["added_tokens"] = [_added(260, "<x>", True)]
    tokenizer = _load(tmp_path, data)
    assert tokenizer.encode("he<x>he", True) == [256, 260, 256]
    assert tokenizer.encode("he<x>he", False) == [256, ord("<"), ord("x"), ord(">"), 256]


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_byte_level_texts_come_back_whole_and_streamed(byte_level: Tokenizer, text: str) -> None:
    ids = byte_level.encode(text, allow_special=True)
    stream = Detokenizer(byte_level, skip_special=False)
    assert byte_level.decode(ids) == text
    assert "".join(stream.push(token_id) for token_id in ids) + stream.flush() == text


@given(text=st.text(st.sampled_from("helo wrd中🙂ü�"), max_size=20))
def test_prefix_decoding_equals_the_whole_text(metaspace: Tokenizer, text: str) -> None:
    ids = metaspace.encode(text, allow_special=False)
    stream = Detokenizer(metaspace)
    streamed = "".join(stream.push(token_id) for token_id in ids) + stream.flush()
    assert streamed == metaspace.decode(ids) == text


def test_a_character_of_several_byte_tokens_appears_at_its_last_byte(metaspace: Tokenizer) -> None:
    stream = Detokenizer(metaspace)
    pushed = [stream.push(3 + byte) for byte in "a🙂".encode()]
    assert pushed == ["a", "", "", "", "🙂"]
    assert [stream.push(3 + byte) for byte in "🙂".encode()[:2]] == ["", ""]
    assert "�" in stream.flush()


def test_without_markers_everything_is_content(metaspace: Tokenizer) -> None:
    parser = RegionParser(metaspace, thinking=True)
    events = [event for token_id in metaspace.encode("hello world", False) for event in parser.push(token_id)]
    events += parser.flush()
    assert {type(event) for event in events} == {Content}
    assert "".join(event.text for event in events if isinstance(event, Content)) == "hello world"


def _broken(change: str) -> str:
    data = _byte_level()
    if change == "not JSON":
        return "{"
    if change == "model":
        data["model"] = {"type": "Nothing"}
    elif change == "added list":
        data["added_tokens"] = 5
    elif change == "added id":
        data["added_tokens"][0]["id"] = -1
    elif change == "added text":
        data["added_tokens"][0]["content"] = ""
    elif change == "duplicate":
        data["added_tokens"][1]["content"] = "<|end|>"
    elif change == "wrong id":
        data["added_tokens"][0]["id"] = 999
    elif change == "merges":
        data["model"]["merges"].append(["q", "nowhere"])
    return json.dumps(data)


@pytest.mark.parametrize(
    "change", ["not JSON", "model", "added list", "added id", "added text", "duplicate", "wrong id", "merges"]
)
def test_a_malformed_file_is_refused(tmp_path: Path, change: str) -> None:
    (tmp_path / "tokenizer.json").write_text(_broken(change))
    with pytest.raises(TextError):
        load_tokenizer(tmp_path)


def test_ids_outside_the_vocabulary_are_refused(byte_level: Tokenizer, metaspace: Tokenizer) -> None:
    for tokenizer in (byte_level, metaspace):
        for token_id in (-1, tokenizer.vocab_size, 1 << 40):
            with pytest.raises(TextError, match="outside the vocabulary"):
                tokenizer.decode_bytes([token_id])
            with pytest.raises(TextError, match="outside the vocabulary"):
                Detokenizer(tokenizer).push(token_id)


class Counted:
    """A tokenizer of the library that counts the characters it is given to encode."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.chars = inner, 0

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.chars += sum(map(len, texts))
        return self._inner.encode_batch_fast(texts, **options)


@pytest.mark.parametrize("text", ["hello w " * 250_000, "a" * 2_000_000])
@pytest.mark.parametrize("data", [_byte_level(), _metaspace()], ids=["bytes", "metaspace"])
def test_encoding_stops_once_the_limit_is_passed(tmp_path: Path, data: dict[str, Any], text: str) -> None:
    tokenizer: Any = _load(tmp_path, data)
    tokenizer._full, tokenizer._plain = Counted(tokenizer._full), Counted(tokenizer._plain)
    for special, literal in ((True, []), (True, [3]), (False, [])):
        tokenizer._full.chars = tokenizer._plain.chars = 0
        ids = tokenizer.encode(text, special, literal, limit=4096)
        assert len(ids) > 4096
        assert tokenizer._full.chars + tokenizer._plain.chars < 200_000
        assert tokenizer.encode(text[:100_000], special)[:4097] == ids[:4097]


@pytest.mark.parametrize("data", [_byte_level(), _metaspace()], ids=["bytes", "metaspace"])
def test_a_text_within_the_limit_is_encoded_whole(tmp_path: Path, data: dict[str, Any]) -> None:
    tokenizer = _load(tmp_path, data)
    for text in ("", "hello w", "hell" * 40_000, "he<|end|>ll " * 30_000):
        for special in (False, True):
            whole = tokenizer.encode(text, special)
            assert tokenizer.encode(text, special, limit=len(whole)) == whole
            assert len(tokenizer.encode(text + "h", special, limit=len(whole))) > len(whole)
