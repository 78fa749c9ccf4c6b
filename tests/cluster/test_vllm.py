"""Real vLLM on either side of the wire: prefilled by vLLM or by Earthshine, decoded by vLLM or by Earthshine.

Two engines serve all tests. Tokens are compared only with those of the same engine: those of a prompt whose latents
were fetched with those of a prompt whose latents vLLM's own prefix cache had; those after a failure with those of a
prompt that was computed as a whole. Between engines latents are compared, layer by layer.

EARTHSHINE_VLLM_PYTHON=FOLDER/bin/python pytest tests/cluster    (about 3 minutes)
"""

import contextlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from torch import Tensor

from earthshine.engine import Finished, LoadedModel, SamplingParams
from earthshine.net.listen import ListenOptions
from earthshine.prfaas.wire import Reason, WireServer
from earthshine.prfaas.worker import PrefillWorker

from ..unit.prfaas.wire.relay import Relay
from .latents import LENGTH, PAGES, equal, free_port, new_prompt, new_salt, require_agreement, url, whole
from .pieces import Prefill, computed, engine_of, fetched
from .vllm_engine import VllmEngine


class Front(Relay):
    """The one peer that the fetching vLLM knows, with whatever a test puts behind it."""

    def point(self, target: int, flip: tuple[int, ...] = ()) -> None:
        self.cut(refuse=True)
        with self._lock:
            self._target, self._flip, self._refusing = target, set(flip), False
            self.connections = self.flipped = 0


class Cluster:
    """`producer` computes prompts; `consumer` fetches them from behind `front`, and can be read through `port`."""

    def __init__(self, folder: Path, model: LoadedModel, stack: contextlib.ExitStack) -> None:
        self.model, self.faulty = model, Prefill(model)
        self.fetch = partial(fetched, model.fingerprint)
        engine = engine_of(model)
        stack.callback(engine.close)
        worker = PrefillWorker(engine, most_waiting=8, log=lambda *line: None)
        self.ports = {"vllm": free_port()}
        for side, handler in {"earthshine": worker, "faulty": self.faulty}.items():
            server = WireServer(ListenOptions(port=0), handler, fingerprint=model.fingerprint)
            stack.callback(server.close)
            self.ports[side] = server.port
        self.vllm_port, self.port = self.ports["vllm"], free_port()
        self.front = stack.enter_context(Front(self.vllm_port))
        same = {"model": model.fingerprint, "hold_seconds": 600}
        self.producer = VllmEngine(
            folder, folder.parent / "producer.log", "kv_producer", listen=url(self.vllm_port), **same
        )
        stack.callback(self.producer.close)
        fetch = {"peers": [url(self.front.port)], "connections": 1, "min_tokens": 64, "retry_seconds": 0}
        self.consumer = VllmEngine(
            folder, folder.parent / "consumer.log", "kv_both", listen=url(self.port), **same, **fetch
        )
        stack.callback(self.consumer.close)
        self.producer.wait()
        self.consumer.wait()

    def prefill(self, side: str, prompt: list[int]) -> None:
        """The consumer will find the prompt with `side`."""
        if side == "vllm":
            self.producer.ask(prompt, 1, held=True)
        self.front.point(self.ports[side])

    def sent(self, side: str, prompt: list[int]) -> list[Tensor]:
        """The latents that `side` sends of the prompt's whole pages."""
        if side == "earthshine":
            return [part[:PAGES] for part in computed(self.model, prompt)]
        self.producer.ask(prompt, 1, held=True)
        return whole(self.fetch(self.vllm_port, prompt))

    def decode(self, prompt: list[int], **more: bool) -> tuple[list[int], tuple[int, int]]:
        """The consumer's tokens; how many of the prompt's it got from its peer, and how many it wanted."""
        before = len(self.consumer.log)
        tokens = self.consumer.ask(prompt, **more)
        found = re.findall(r"Request \S+: (\d+)(?: of (\d+))? tokens from", self.consumer.log[before:])
        assert len(found) == 1, found
        return tokens, (int(found[0][0]), int(found[0][1] or found[0][0]))

    def plain(self, *prompts: list[int]) -> list[int]:
        """vLLM's tokens of the last prompt, whose cache has nothing but the prompts before it."""
        salt = new_salt()
        return [self.producer.ask(prompt, salt=salt) for prompt in prompts][-1]

    def read_back(self, prompt: list[int]) -> list[Tensor]:
        """The latents in the consumer's cache, after `decode(held=True)`."""
        return whole(self.fetch(self.port, prompt))


@pytest.fixture(scope="module")
def cluster(folder: Path, model: LoadedModel) -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        yield Cluster(folder, model, stack)


SIDES = pytest.mark.parametrize("side", ["vllm", "earthshine"])


# --- vLLM decodes


@SIDES
def test_fetched_latents_are_those_that_were_sent_and_decoding_goes_on(cluster, side):
    prompt = new_prompt()
    sent = cluster.sent(side, prompt)
    cluster.prefill(side, prompt)
    tokens, figures = cluster.decode(prompt, held=True)
    assert figures == (PAGES, PAGES)
    assert equal(cluster.read_back(prompt), sent)
    assert cluster.consumer.ask(prompt) == tokens  # from its own prefix cache now
    if side == "vllm":
        assert tokens == cluster.plain(prompt[: PAGES + 1], prompt)


@SIDES
def test_only_what_the_consumer_lacks_is_fetched(cluster, side):
    known = new_prompt()
    prompt = known[:128] + new_prompt()[128:]
    for each, figures in ((known, (PAGES, PAGES)), (prompt, (128, 128))):
        cluster.prefill(side, each)
        tokens, got = cluster.decode(each)
        assert got == figures
    if side == "vllm":
        assert tokens == cluster.plain(known, prompt, prompt)
    else:
        assert cluster.consumer.ask(prompt) == tokens


@SIDES
def test_several_prompts_at_once_keep_apart(cluster, side):
    prompts = [new_prompt() for _ in range(6)]
    sent = [cluster.sent(side, prompt) for prompt in prompts]
    for prompt in prompts:
        cluster.prefill(side, prompt)
    cluster.consumer.ask_all(prompts, held=True)
    for prompt, latents in zip(prompts, sent, strict=True):
        assert equal(cluster.read_back(prompt), latents)


def test_unreachable_peer_costs_no_request_and_no_token(cluster):
    prompt = new_prompt()
    cluster.front.point(free_port())
    tokens, figures = cluster.decode(prompt)
    assert figures == (0, PAGES)
    assert tokens == cluster.plain(prompt)


@SIDES
def test_a_flipped_byte_is_sent_again(cluster, side):
    prompt = new_prompt()
    cluster.prefill(side, prompt)
    cluster.front.point(cluster.ports[side], flip=(100_000, 400_000))
    tokens, figures = cluster.decode(prompt, held=True)
    assert (cluster.front.flipped, figures) == (2, (PAGES, PAGES))
    assert tokens == cluster.consumer.ask(prompt)
    if side == "vllm":
        assert tokens == cluster.plain(prompt[: PAGES + 1], prompt)
    else:
        assert equal(cluster.read_back(prompt), cluster.sent(side, prompt))


def test_blocks_that_stay_damaged_are_computed_by_vllm(cluster):
    prompt = new_prompt()
    cluster.prefill("faulty", prompt)
    cluster.faulty.damaged = True
    try:
        tokens, figures = cluster.decode(prompt)
    finally:
        cluster.faulty.damaged = False
    assert figures == (0, PAGES)
    assert tokens == cluster.plain(prompt)


def test_peer_that_dies_between_two_layers_costs_no_token(cluster):
    prompt = new_prompt()
    cluster.prefill("faulty", prompt)
    with cluster.faulty.stopped(after=2) as reached:
        cluster.consumer.send(prompt, 12)
        assert reached.wait(60)
        cluster.front.cut(refuse=True)
        tokens = cluster.consumer.tokens()
    assert tokens == cluster.plain(prompt)


def test_first_piece_is_kept_where_the_second_fails(cluster):
    prompt = new_prompt()
    cluster.prefill("faulty", prompt)
    with cluster.faulty.failing(piece_tokens=128):
        _, figures = cluster.decode(prompt, held=True)
    assert figures == (128, PAGES)
    found, sent = cluster.read_back(prompt), cluster.sent("earthshine", prompt)
    assert equal([part[:128] for part in found], [part[:128] for part in sent])
    require_agreement(
        [part[128:] for part in sent], [part[128:] for part in found], "vLLM's tokens after Earthshine's,"
    )


# --- Earthshine decodes


def test_vllms_latents_agree_with_earthshines_and_decoding_goes_on(cluster):
    prompt = new_prompt()
    cluster.producer.ask(prompt, 1, held=True)
    latents = cluster.fetch(cluster.vllm_port, prompt)
    own = computed(cluster.model, prompt)
    require_agreement([part[:PAGES] for part in own], whole(latents), "vLLM's against Earthshine's,")
    session = cluster.model.session()
    try:
        session.restore(latents.blob(cluster.model))
        synced = session.sync(prompt)
        assert (synced.reused, synced.computed) == (PAGES, LENGTH - PAGES)
        after = [part[PAGES:] for part in session.snapshot().parts]
        require_agreement([part[PAGES:] for part in own], after, "Earthshine's tokens after vLLM's,")
        params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
        assert list(session.generate(params))[-1] == Finished("length")
    finally:
        session.close()


def test_pages_that_earthshine_has_are_not_sent(cluster):
    prompt = new_prompt()
    cluster.producer.ask(prompt, 1, held=True)
    everything = whole(cluster.fetch(cluster.vllm_port, prompt))
    cluster.producer.ask(prompt, 1, held=True)
    latents = cluster.fetch(cluster.vllm_port, prompt, start=128)
    assert latents.start == 128
    assert equal(whole(latents), [part[128:] for part in everything])


def test_prompts_of_another_tenant_are_not_sent(cluster):
    prompt = new_prompt()
    cluster.producer.ask(prompt, 1, held=True, salt="theirs")
    assert cluster.fetch(cluster.vllm_port, prompt, seconds=1.0).error.reason is Reason.DEADLINE
    assert whole(cluster.fetch(cluster.vllm_port, prompt, salt="theirs"))


@pytest.mark.parametrize("fault", ["flip", "cut", "die"])
def test_earthshine_gets_sound_latents_or_a_reason(cluster, fault):
    prompt = new_prompt()
    if fault != "die":
        cluster.producer.ask(prompt, 1, held=True)
    with Relay(cluster.vllm_port, flip=(100_000,) if fault == "flip" else ()) as relay:
        if fault == "flip":
            sound = whole(cluster.fetch(relay.port, prompt))
            cluster.producer.ask(prompt, 1, held=True)
            assert equal(sound, whole(cluster.fetch(cluster.vllm_port, prompt)))
            return
        relay.cut(refuse=fault == "cut")
        found = cluster.fetch(relay.port, prompt, seconds=3.0)
        assert found.error.reason in (Reason.UNREACHABLE, Reason.LOST, Reason.DEADLINE)
        assert not found.verified


# --- and the last: vLLM is gone


def test_vllm_that_is_killed_costs_no_token(cluster):
    prompt = new_prompt()
    plain = cluster.plain(prompt)
    cluster.front.point(cluster.vllm_port)
    cluster.consumer.send(prompt, 12)  # which waits, since nobody gives the prompt to the producer
    cluster.producer.close()
    assert cluster.consumer.tokens() == plain
