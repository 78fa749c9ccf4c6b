"""States on disk and in snapshots are used only by kernels that compute the same bits."""

import queue
import re
from collections.abc import Callable, Iterator

import pytest
import torch

from earthshine import kernels
from earthshine.engine import (
    Admitted,
    Engine,
    EngineOptions,
    Finished,
    LoadedModel,
    Request,
    SamplingParams,
    TokenEvent,
    load_model,
)
from earthshine.errors import BlobError
from earthshine.kernels import library
from earthshine.kv import KVBlob
from earthshine.plan import PlanArgs

from .tiny import Case, write_tiny

PROMPT = [(7 * i * i + 3 * i + 11) % 150 for i in range(150)]  # two pages, and 22 tokens
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
DTYPES = pytest.mark.parametrize("dtype", ["fp32", "bf16"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"), Case(storage="int4"))


@pytest.fixture
def choose(monkeypatch) -> Iterator[Callable[[str], None]]:
    """Kernels as a process with this EARTHSHINE_KERNELS would have them."""

    def chosen(choice: str) -> None:
        monkeypatch.setenv("EARTHSHINE_KERNELS", choice)
        kernels._serving.cache_clear()
        kernels.implementations()

    yield chosen
    monkeypatch.undo()
    kernels._serving.cache_clear()
    if library.available():
        library.force("auto")


def choices() -> list[str]:
    return ["reference", *(library.instruction_sets() if library.available() else ())]


def load(folder, dtype: str) -> LoadedModel:
    return load_model(folder, PlanArgs(dtype=dtype, threads=1))


def kept_and_logprobs(model: LoadedModel) -> tuple[bytes, list[float]]:
    """A snapshot after the prompt, and what follows it."""
    session = model.session()
    session.sync(PROMPT)
    kept = session.snapshot().to_bytes()
    return kept, [event.logprob for event in session.generate(GREEDY) if isinstance(event, TokenEvent)]


@DTYPES
def test_equal_names_of_numerics_mean_equal_bits(folder, choose, dtype):
    found: dict[str, set[str]] = {}
    values: dict[str, list[float]] = {}
    for choice in choices():
        choose(choice)
        name = kernels.numerics(torch.float32 if dtype == "fp32" else torch.bfloat16)
        model = load(folder, dtype)
        kept, logprobs = kept_and_logprobs(model)
        model.close()
        assert values.setdefault(name, logprobs) == logprobs, choice
        found.setdefault(name, set()).add(kept.hex())
    assert all(len(blobs) == 1 for blobs in found.values())
    if dtype == "bf16":  # names that say more than the bits do would only divide caches
        assert len({tuple(logprobs) for logprobs in values.values()}) == len(values)


def test_a_snapshot_of_other_kernels_is_refused(folder, choose):
    kept = {}
    for choice in choices():
        choose(choice)
        model = load(folder, "bf16")
        kept[kernels.numerics()] = kept_and_logprobs(model)[0]
        for name, state in kept.items():
            if name == kernels.numerics():
                model.session().restore(KVBlob.from_bytes(state))
            else:
                with pytest.raises(BlobError, match=re.escape(f"-{name}'; this one is ")):
                    model.session().restore(KVBlob.from_bytes(state))
        model.close()


def test_a_disk_cache_is_shared_by_kernels_of_equal_bits_alone(folder, choose, tmp_path):
    options = EngineOptions(disk_cache_bytes=1 << 24, disk_cache_folder=tmp_path / "cache")
    seen = set()
    for choice in choices():
        choose(choice)
        model = load(folder, "bf16")
        engine = Engine(model, options)
        events: queue.Queue = queue.Queue()
        engine.submit(Request(PROMPT, GREEDY), events.put)
        admitted = events.get(timeout=300)
        assert admitted == Admitted(128 if kernels.numerics() in seen else 0)
        while not isinstance(events.get(timeout=300), Finished):
            pass
        assert engine.drain(300)
        engine.close()
        model.close()
        seen.add(kernels.numerics())
    assert len(list((tmp_path / "cache").iterdir())) == len(seen)
