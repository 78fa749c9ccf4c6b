"""gleam's own vocabulary: byte-pair merges over Kimi's split pattern, written in the `tiktoken.model` format.

256 control tokens follow the ranks, 23 of them named, at the offsets that Kimi's vocabulary has.
"""

import base64
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from earthshine.text.hugging_face import byte_alphabet
from earthshine.text.tiktoken_model import PATTERN


def train_vocabulary(texts: Iterable[str], n_ranks: int) -> list[bytes]:
    """`n_ranks` byte strings in the order of their ranks; the first 256 are the single bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=n_ranks, initial_alphabet=alphabet, show_progress=False)
    )
    byte_of = byte_alphabet()
    ordered = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [bytes(byte_of[character] for character in token) for token, _ in ordered]


def write_vocabulary(path: Path, ranks: list[bytes]) -> None:
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ranks))
    path.write_text("".join(lines), encoding="ascii")
