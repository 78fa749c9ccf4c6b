"""gleam's own vocabulary: byte-pair merges over Kimi's split pattern, written in the `tiktoken.model` format.

256 control tokens follow the ranks, 23 of them named, at the offsets that Kimi's vocabulary has.
"""

import base64
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from earthshine.text.tiktoken_model import PATTERN


def _byte_of() -> dict[str, int]:
    """The byte that each character of the byte-level alphabet stands for (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


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
    byte_of = _byte_of()
    ordered = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [bytes(byte_of[character] for character in token) for token, _ in ordered]


def write_vocabulary(path: Path, ranks: list[bytes]) -> None:
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ranks))
    path.write_text("".join(lines), encoding="ascii")
