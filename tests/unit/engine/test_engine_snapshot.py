"""Snapshots: the same continuation elsewhere, or a refusal that leaves the session as it was."""

import dataclasses

import pytest
import torch

from earthshine.engine import SamplingParams, Synced
from earthshine.errors import BlobError, ContextError
from earthshine.kv import BlobHeader, KVBlob, Part

PROMPT = [5, 1, 4, 1, 5, 9, 2, 6, 5, 3]
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.mark.parametrize("events", [0, 1, 5])
def test_a_restored_session_continues_as_the_first_would(make_session, make_pool, events):
    """After a prompt, and in the middle of an answer; through bytes, into pages of another size."""
    session = make_session()
    session.sync(PROMPT)
    stream = session.generate(GREEDY)
    for _ in range(events):
        next(stream)
    data = session.snapshot().to_bytes()
    other = make_session(pool=make_pool(page_tokens=3))
    other.sync([9, 9, 9])
    other.restore(KVBlob.from_bytes(data))
    assert other.tokens == session.tokens
    assert list(other.generate(GREEDY)) == list(session.generate(GREEDY))


def test_after_a_restore_the_same_prompt_computes_nothing(make_session, make_decoder):
    session = make_session()
    session.sync(PROMPT)
    decoder = make_decoder()
    other = make_session(decoder)
    other.restore(session.snapshot())
    assert other.sync(PROMPT) == Synced(10, 0)
    next(other.generate(GREEDY))
    assert decoder.steps == []
    assert other.sync([*PROMPT, 8]) == Synced(10, 1)


def test_without_a_tail_the_last_token_alone_is_computed_again(make_session, decoder):
    session = make_session()
    session.sync(PROMPT)
    blob = session.snapshot()
    other = make_session(decoder)
    other.restore(KVBlob(dataclasses.replace(blob.header, tail_dim=0), blob.parts, None))
    assert list(other.generate(GREEDY)) == list(session.generate(GREEDY))
    assert decoder.steps[0] == PROMPT[-1:]


def test_a_snapshot_is_a_copy(make_session):
    session = make_session()
    session.sync(PROMPT)
    blob = session.snapshot()
    before = blob.to_bytes()
    session.sync([30, 31, 32, 33])
    assert blob.to_bytes() == before


def test_an_empty_session_survives_the_journey(make_session):
    other = make_session()
    other.sync(PROMPT)
    other.restore(KVBlob.from_bytes(make_session().snapshot().to_bytes()))
    assert other.tokens == ()
    assert other.sync(PROMPT) == Synced(0, 10)


def test_a_restore_may_use_the_pages_it_frees(make_session, make_pool):
    session, pool = make_session(), make_pool(n_pages=3)
    session.sync(PROMPT)
    other = make_session(pool=pool)
    other.sync(PROMPT[::-1])
    assert pool.free_pages == 0
    other.restore(session.snapshot())
    assert other.tokens == tuple(PROMPT)
    other.close()
    assert pool.free_pages == 3


def altered(blob: KVBlob, **changes) -> KVBlob:
    """The same latents under another header."""
    layout = {key: value for key, value in changes.items() if hasattr(blob.header.layout, key)}
    rest = {key: value for key, value in changes.items() if key not in layout}
    header = dataclasses.replace(blob.header, layout=dataclasses.replace(blob.header.layout, **layout), **rest)
    return KVBlob(header, blob.parts, blob.tail)


def test_a_refused_restore_leaves_the_session_as_it_was(make_session, make_decoder, make_pool):
    source = make_session()
    source.sync([*PROMPT, 8, 8])
    blob = source.snapshot()
    wide = make_session(make_decoder(torch.float32), make_pool(dtype=torch.float32))
    wide.sync(PROMPT)
    shallow = dataclasses.replace(
        blob.header, layout=dataclasses.replace(blob.header.layout, parts=blob.header.layout.parts[:2])
    )
    long = dataclasses.replace(make_decoder().spec, max_context=99)
    longer = make_session(make_decoder(spec=long))
    longer.sync([3] * 70)
    tail = torch.zeros(5, dtype=torch.bfloat16)
    refused = [
        (altered(blob, fingerprint="fake-2"), BlobError, "'fake-2'; this one is 'fake-1'"),
        (wide.snapshot(), BlobError, "values are fp32, but this model's are bf16"),
        (KVBlob(shallow, blob.parts[:2], blob.tail), BlobError, "has 2 parts, but this model keeps 3"),
        (altered(blob, parts=tuple(Part(layer + 1, 6) for layer in range(3))), BlobError, "Part 0 .* in layer 1, but"),
        (altered(blob, token_ids=(*PROMPT, 8, 40)), BlobError, "vocabulary of 40"),
        (KVBlob(dataclasses.replace(blob.header, tail_dim=5), blob.parts, tail), BlobError, "tail has 5 values"),
        (longer.snapshot(), ContextError, "70 tokens; the model's context is 64"),
        (blob, ContextError, "12 tokens; its pages and the free ones hold 8"),
    ]
    pool = make_pool(n_pages=2)
    session, fresh = make_session(pool=pool), make_session()
    session.sync(PROMPT[:6])
    stream = session.generate(GREEDY)
    events = [next(stream)]
    for state, error, message in refused:
        with pytest.raises(error, match=message):
            session.restore(state)
    fresh.sync(PROMPT[:6])
    assert session.tokens == (*PROMPT[:6], events[0].token)
    assert [*events, next(stream)] == [event for event, _ in zip(fresh.generate(GREEDY), range(2), strict=False)]


def test_header_and_values_describe_what_is_held(make_session):
    session = make_session()
    session.sync(PROMPT)
    next(session.generate(GREEDY))
    header = session.snapshot().header
    assert isinstance(header, BlobHeader)
    assert (header.n_tokens, header.token_ids, header.tail_dim) == (10, session.tokens, 0)
    assert [(part.layer, part.width) for part in header.layout.parts] == [(0, 6), (1, 6), (2, 6)]
