"""Greedy output does not depend on how a prompt was cut, what was reused, threads, budget, the batch or the processor.

Every logit of a run counts: they are hashed as they are computed. On bf16 one hash holds for every instruction set but
avx512_bf16, whose instruction adds in an order of its own and has one hash of its own.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from earthshine import kernels
from earthshine.engine import LoadedModel, SamplingParams, Session, StepRow, TokenEvent, load_model, step
from earthshine.engine.experts import RoutedExperts
from earthshine.kernels import library
from earthshine.kv import KVBlob, PagePool, PageTable
from earthshine.models import Decoder
from earthshine.plan import PlanArgs
from earthshine.spec import load_spec, moe_layers
from earthshine.weights import Checkpoint, ExpertStore, Reader, StoredTrunk

from .tiny import PROMPT, Case, KimiLinear, Qwen3, write_tiny

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
UNITS = ("layers.0", "layers.1", "layers.2", "head")
HALF = PROMPT[:50]


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    before = kernels.threads() if library.available() else 1
    yield
    if library.available():
        kernels.set_threads(before)


@pytest.fixture(
    scope="module", params=[Case(storage="int4"), Qwen3(), KimiLinear()], ids=["latent", "grouped", "delta"]
)
def folder(request, tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"), request.param)


@pytest.fixture(scope="module")
def load(folder):
    return cache(
        lambda dtype: load_model(folder, PlanArgs(dtype="fp32" if dtype == torch.float32 else "bf16", threads=1))
    )


def _pool(spec, dtype, pages):
    return PagePool(spec.kept, 16, pages, dtype, n_states=32)


def _session(model: LoadedModel, prefill_tokens=64):
    pool = _pool(model.spec, model.decoder.dtype, 16)
    return Session(model.decoder, pool, fingerprint="tiny", prefill_tokens=prefill_tokens)


def _answer(session, prompt=PROMPT, tokens=24):
    session.sync(prompt)
    events = session.generate(SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True))
    return [(event.token, event.logprob) for event in events if isinstance(event, TokenEvent)]


@DTYPES
@pytest.mark.parametrize("prefill_tokens", [1, 7, 33, 512])
def test_output_does_not_depend_on_how_the_prompt_is_cut(load, dtype, prefill_tokens):
    assert _answer(_session(load(dtype), prefill_tokens)) == _answer(_session(load(dtype)))


@DTYPES
def test_output_does_not_depend_on_prefix_reuse(load, dtype):
    session = _session(load(dtype))
    _answer(session, [*PROMPT[:41], 5, 6, 7])
    reused = session.sync(PROMPT).reused
    recurrent = load(dtype).spec.state_bytes(2) > 0
    assert reused == (32 if recurrent else 41), "a recurrent state goes back to the page boundary of its prompt"
    assert _answer(session) == _answer(_session(load(dtype)))


def test_a_decode_step_takes_two_native_calls_a_layer(load, monkeypatch):
    """Where the library serves and every expert is in memory; not for delta attention, which has several."""
    served = next(one for one in kernels.implementations() if one.operation == "mla_layer")
    if served.name == "torch":
        pytest.skip(served.reason)
    model, calls, loaded = load(torch.bfloat16), Counter(), library.library()
    session = _session(model)
    session.sync(PROMPT)
    for name in library._SIGNATURES:
        call = getattr(loaded, name)
        monkeypatch.setattr(loaded, name, lambda *given, name=name, call=call: (calls.update((name,)), call(*given))[1])
    hits = model.experts.stats.hits
    model.decoder.logits(session._latest())
    session.sync([*PROMPT, 5])
    layers, moes = model.spec.layers, [moe for _, moe in moe_layers(model.spec)]
    kinds = Counter(type(layer.attention).__name__ for layer in layers)
    assert (calls["es_mla_layer"], calls["es_gqa_layer"]) == (kinds["MlaSpec"], kinds["GqaSpec"])
    assert calls["es_ffn_layer"] == len(layers)
    assert model.experts.stats.hits - hits == sum(moe.top_k for moe in moes)
    if not kinds["KdaSpec"]:
        assert calls.total() == 2 * len(layers) + 2, "and the last norm, and the head"


@DTYPES
def test_output_after_a_restored_state_is_the_same(load, dtype):
    session, other = _session(load(dtype)), _session(load(dtype))
    session.sync(PROMPT[:77])
    other.restore(KVBlob.from_bytes(session.snapshot().to_bytes()))
    assert other.sync(PROMPT).reused == 77
    assert _answer(other) == _answer(_session(load(dtype)))


@DTYPES
def test_output_does_not_depend_on_threads(load, dtype):
    before, answers = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            kernels.set_threads(threads, dtype)
            answers.append(_answer(_session(load(dtype))))
    finally:
        torch.set_num_threads(before)
    assert answers[0] == answers[1]


@DTYPES
def test_output_does_not_depend_on_expert_slots(folder, load, dtype):
    checkpoint = Checkpoint.open(folder, load_spec(folder))
    with Reader() as reader:
        store = ExpertStore(checkpoint, slots_per_layer=1, transit_slots=1, reader=reader, dtype=dtype)
        decoder = Decoder(checkpoint.spec, load(dtype).decoder.trunk, RoutedExperts(store))
        poor = Session(decoder, _pool(checkpoint.spec, dtype, 16), fingerprint="tiny", prefill_tokens=64)
        assert _answer(poor) == _answer(_session(load(dtype)))
        assert store.stats.misses > 100


@DTYPES
def test_output_does_not_depend_on_the_batch(load, dtype):
    model = load(dtype)
    pool = _pool(model.spec, dtype, 48)
    prompts = [PROMPT[:50], PROMPT[30:37], [9]]
    alone = [step(model.decoder, [StepRow(PageTable(pool), prompt)])[0] for prompt in prompts]
    together = step(model.decoder, [StepRow(PageTable(pool), prompt) for prompt in prompts])
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


@dataclass(frozen=True)
class Held:
    """How a model lies in memory, and who computes."""

    slots: int = 16
    transit: int = 0
    streamed: tuple[str, ...] = ()
    threads: int = 1


@pytest.fixture
def build(folder) -> Iterator[Callable[[Held], Decoder]]:
    """A bf16 decoder held as asked."""
    spec, readers = load_spec(folder), []

    def built(held: Held) -> Decoder:
        checkpoint, reader = Checkpoint.open(folder, spec), Reader()
        readers.append(reader)
        if library.available():
            kernels.set_threads(held.threads)
        streamed = frozenset(held.streamed)
        trunk = StoredTrunk(checkpoint, reader, streamed=streamed, embedding_on_disk=bool(streamed))
        store = ExpertStore(
            checkpoint, slots_per_layer=held.slots, transit_slots=held.transit, reader=reader, dtype=torch.bfloat16
        )
        return Decoder(spec, trunk, RoutedExperts(store))

    yield built
    for reader in readers:
        reader.close()


def run_hash(decoder: Decoder, chunks: Sequence[int] = (50,), others: int = 0, tokens: int = 199) -> str:
    """Of every position's logits in a greedy run after HALF, which passes in `chunks`, and `tokens` more tokens.

    `others`: sequences of other lengths that share each step, half the time in front.
    """
    pool = _pool(decoder.spec, decoder.dtype, 17 * (1 + others))
    mine, rest = PageTable(pool), [PageTable(pool) for _ in range(others)]
    digest, at = hashlib.sha256(), 0
    following: Sequence[int] = ()
    for i in range(len(chunks) + tokens):
        if i < len(chunks):
            following, at = HALF[at : at + chunks[i]], at + chunks[i]
        beside = [[(i * 7 + j * 31) % 159] * (1 + (j + i) % 3 * (i < 9)) for j in range(others)]
        rows = [StepRow(mine, following), *map(StepRow, rest, beside)]
        hidden = step(decoder, rows[::-1])[-1] if i % 2 else step(decoder, rows)[0]
        logits = decoder.logits(hidden)
        digest.update(logits.numpy().tobytes())
        following = [int(logits[-1].argmax())]
    return digest.hexdigest()


FEW = 24  # where threads may have to share a processor, and wait for each other thousands of times
WAYS = {
    "no slots": (Held(0, 1), {}),
    "some slots": (Held(5, 3), {}),
    "2 threads": (Held(threads=2), {"tokens": FEW}),
    "3 threads": (Held(threads=3), {"tokens": FEW}),
    "in chunks": (Held(), {"chunks": (1, 16, 17, 9, 7)}),
    "beside seven others": (Held(), {"others": 7}),
    "trunk streamed": (Held(streamed=UNITS), {}),
    "all of these": (Held(1, 2, UNITS[1:], 2), {"chunks": (33, 17), "others": 7, "tokens": FEW}),
}


class TestEveryLogit:
    @pytest.mark.parametrize("way", WAYS)
    def test_is_the_same_however_the_model_is_held_and_the_run_is_cut(self, build, way):
        held, options = WAYS[way]
        assert run_hash(build(held), **options) == run_hash(build(Held()), tokens=options.get("tokens", 199))

    def test_differs_where_anything_differs(self, build):
        """The hash sees one token less, of the prompt and of the run."""
        decoder = build(Held())
        hashes = {run_hash(decoder, (49,), tokens=5), run_hash(decoder, tokens=5), run_hash(decoder, tokens=4)}
        assert len(hashes) == 3

    def test_is_the_same_on_every_instruction_set_but_one(self, build):
        served = next(one for one in kernels.implementations() if one.operation == "linear")
        if served.name == "torch":
            pytest.skip(served.reason)
        serving, hashes = library.instruction_set(), {}
        try:
            for name in library.instruction_sets():
                library.force(name)
                hashes[name] = {run_hash(build(Held())) for _ in range(2)}
        finally:
            library.force(serving)
        own = hashes.pop("avx512_bf16", set())
        assert len(set.union(*hashes.values())) == 1, hashes
        assert not own or (len(own) == 1 and own.isdisjoint(hashes["portable"]))

    def test_is_the_same_on_emulated_amx(self, build, emulated_library, monkeypatch):
        serving = library.instruction_set()
        library.force("portable")
        try:
            wanted = run_hash(build(Held()))
        finally:
            library.force(serving)
        monkeypatch.setattr(library, "_load", lambda: emulated_library)
        library.force("amx")
        assert run_hash(build(Held(5, 3, UNITS[:2]))) == wanted
