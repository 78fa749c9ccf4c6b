"""A model's tiktoken.model as the tokenizer.json that clients read, compared with Earthshine's own tokenizer."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from earthshine.errors import UsageError
from earthshine.text.tiktoken_model import PATTERN, TiktokenTokenizer, load_tiktoken

_SAMPLES = (
    "List the files, newest first.",
    "print(f'{x:>8}')\r\n\r\n\tyou're  2024-11-22",
    "čau, мир, 日本語の word",
    " ",
)


def write_tokenizer(model: Path, folder: Path) -> None:
    """Writes `folder`/tokenizer.json and its config. Raises UsageError where it splits a sample differently."""
    theirs = load_tiktoken(model)
    n_ranks = theirs.vocab_size - 256
    letters = bytes_to_unicode()
    tokens = [theirs.token_bytes(rank) for rank in range(n_ranks)]
    spelled = {"".join(letters[byte] for byte in token): rank for rank, token in enumerate(tokens)}
    bpe = Tokenizer(models.BPE(vocab=spelled, merges=_merges(tokens, letters), ignore_merges=True))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([theirs.token_bytes(id).decode() for id in range(n_ranks, theirs.vocab_size)])
    _require_same(theirs, bpe)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="[PAD]").save_pretrained(folder)


def _merges(tokens: list[bytes], letters: dict[int, str]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a third, in the order of the third's rank."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    found = []
    for token in tokens:
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        found += [tuple("".join(letters[byte] for byte in side) for side in pair) for pair in known]
    return found


def _require_same(theirs: TiktokenTokenizer, ours: Tokenizer) -> None:
    for text in _SAMPLES:
        if theirs.encode(text, allow_special=False) != ours.encode(text, add_special_tokens=False).ids:
            raise UsageError(f"The tokenizer.json splits {text!r} differently from the model's tokenizer.")
