"""A prompt far longer than the context is refused after little more than the context was encoded."""

import pytest

from earthshine.errors import ContextError
from earthshine.generation.prompts import Prompts
from earthshine.generation.request import GenerationRequest
from earthshine.hub import GLEAM
from earthshine.text import load_template, load_tokenizer

CONTEXT = 256
TEXT = "hello world, " * 100_000


@pytest.fixture
def counted(monkeypatch):
    """Prompts over gleam's tokenizer, and the number of characters of each text that its library encodes."""
    tokenizer, encoded = load_tokenizer(GLEAM), []
    inner = tokenizer._bpe

    class Counting:
        def encode_ordinary(self, text):
            encoded.append(len(text))
            return inner.encode_ordinary(text)

    monkeypatch.setattr(tokenizer, "_bpe", Counting())
    return Prompts(tokenizer, load_template(GLEAM), tokenizer.vocab_size, (2,), CONTEXT), encoded


@pytest.mark.parametrize("prompt", [TEXT, [{"role": "user", "content": TEXT}]], ids=["raw", "messages"])
def test_a_long_prompt_is_refused_without_encoding_it_whole(counted, prompt):
    prompts, encoded = counted
    with pytest.raises(ContextError, match=f"length is {CONTEXT} tokens; the prompt has more"):
        prompts.choices(GenerationRequest(prompt))
    assert sum(encoded) < 30_000


def test_counting_goes_to_the_end(counted):
    prompts, encoded = counted
    assert prompts.count(GenerationRequest(TEXT)) > 100_000
    assert sum(encoded) == len(TEXT)
