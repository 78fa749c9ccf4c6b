"""A prompt that is only prefilled: its pages leave layer by layer as blobs, and another pool goes on from them.

The reply there is bit for bit that of a machine that computed everything itself, for every kind of attention.
"""

import random
from collections.abc import Callable, Sequence
from io import BytesIO

import pytest
import torch
from torch import Tensor

from earthshine.engine import (
    Admitted,
    Failed,
    Finished,
    LoadedModel,
    PromptPiece,
    Request,
    SamplingParams,
    TokenEvent,
    load_model,
)
from earthshine.engine.scheduler import Scheduler
from earthshine.engine.sequence import TokenSequence
from earthshine.kv import Arrival, BlobLayout, BlobReader, BlobWriter, PagePool, PrefixCache, piece_header
from earthshine.plan import PlanArgs

from .tiny import PROMPT, Case, KimiLinear, Qwen3, write_tiny

PAGE, WHOLE = 16, 96
PARAMS = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


@pytest.fixture(
    scope="module", params=[Case(storage="int4"), Qwen3(), KimiLinear()], ids=["latent", "grouped", "delta"]
)
def model(request, tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("tiny"), request.param)
    loaded = load_model(folder, PlanArgs(threads=1))
    yield loaded
    loaded.close()


class Machine:
    """A scheduler over pages of its own. `poll` is called between layers."""

    def __init__(self, model: LoadedModel, n_pages: int = 24, **options) -> None:
        self.model, self.poll = model, lambda: None
        self.pool = PagePool(model.spec.kept, PAGE, n_pages, model.decoder.dtype, n_states=32)
        self.cache = PrefixCache(self.pool)
        given = {"max_running": 4, "context_tokens": 256, "prefill_tokens": 64, "max_stall": 1.0} | options
        self.scheduler = Scheduler(model.decoder, self.pool, self.cache, poll=lambda: self.poll(), **given)
        self._count = 0

    def submit(self, request: Request) -> tuple[TokenSequence, list]:
        events: list = []
        self._count += 1
        sequence = TokenSequence(self._count, request, events.append, PAGE, frozenset())
        self.scheduler.queue.add(sequence)
        return sequence, events

    def run(self) -> None:
        while self.scheduler.queue.busy:
            self.scheduler.step()

    def answer(self, request: Request) -> list:
        _, events = self.submit(request)
        self.run()
        return events

    def holds_nothing(self) -> bool:
        self.cache.settle()
        self.cache.clear()
        states = self.pool.states
        return self.pool.free_pages == self.pool.n_pages and (states is None or states.free == states.n_slots)


class Blobs:
    """A sink that writes each piece as a blob, from the views, at once; `late` from the views at the very end."""

    def __init__(self, machine: Machine, tokens: Sequence[int], start: int = 0, tenant: str = "") -> None:
        model = machine.model
        self.start, self._tokens, self._tenant = start, tokens, tenant
        self._layout = BlobLayout.of(model.spec.kept, model.fingerprint, model.decoder.dtype)
        self.pieces: list[PromptPiece] = []
        self.n_parts: list[int] = []  # given before each call of `seen`
        self._files: list[BytesIO] = []
        self._given: list[tuple[Tensor, Sequence[Tensor]]] = []
        self._writer: BlobWriter | None = None
        self.failing = False

    def begin(self, piece: PromptPiece) -> None:
        assert self._writer is None
        self.pieces.append(piece)
        keys = TokenSequence(0, Request(self._tokens, PARAMS, self._tenant), print, PAGE, frozenset()).keys(piece.end)
        own = self._tokens[piece.start : piece.end]
        header = piece_header(self._layout, keys[piece.start // PAGE], own, PAGE, piece.with_states)
        self._files.append(BytesIO())
        self._writer = BlobWriter(self._files[-1], header)

    def part(self, index: int, views: Sequence[Tensor]) -> None:
        if self.failing:
            raise ConnectionResetError
        values = torch.cat(list(views))
        self._given.append((values, views))
        assert self._writer is not None
        self._writer.part(index, values)

    def end(self) -> None:
        assert self._writer is not None
        self._writer.close()
        self._writer = None

    @property
    def n_given(self) -> int:
        return len(self._given)

    def release(self) -> None:
        """The views still hold what they held when they were given."""
        assert all(torch.equal(torch.cat(list(views)), values) for values, views in self._given)
        for piece in self.pieces:
            piece.release()

    def load(self, machine: Machine, n_pieces: int | None = None, close: bool = True) -> Arrival:
        """Read the first blobs into pages of another machine, as a receiver does."""
        sequence = TokenSequence(0, Request(self._tokens, PARAMS, self._tenant), print, PAGE, frozenset())
        arrival = machine.cache.expect(sequence.keys(len(self._tokens)), self._tokens)
        assert arrival.start == self.start
        for piece, file in list(zip(self.pieces, self._files, strict=True))[:n_pieces]:
            file.seek(0)
            reader = BlobReader(file, len(file.getvalue()))
            for index, part in zip(reader.header.stored, reader.parts(), strict=True):
                places = arrival.values(index, piece.start, piece.end)
                for place, values in zip(places, part.split([len(each) for each in places]), strict=True):
                    place.copy_(values)
            arrival.verified(piece.end, piece.with_states)
        if close:
            arrival.close()
        return arrival


def prefill(machine: Machine, blobs: Blobs, tokens: Sequence[int]) -> list:
    return machine.answer(Request(tokens, PARAMS, pieces=blobs))


def reply(events: list) -> list:
    return [event for event in events if isinstance(event, TokenEvent | Finished | Failed)]


@pytest.fixture
def alone(model) -> Callable[[list[int]], list]:
    return lambda tokens: reply(Machine(model).answer(Request(tokens, PARAMS)))


@pytest.mark.parametrize("prefill_tokens", [7, 33, 64, 256])
def test_other_pool_goes_on_from_the_pieces_with_the_same_bits(model, alone, prefill_tokens):
    source, target = Machine(model, prefill_tokens=prefill_tokens), Machine(model)
    blobs = Blobs(source, PROMPT[:WHOLE])
    assert prefill(source, blobs, PROMPT[:WHOLE]) == [Admitted(0), Finished("length")]
    assert [piece.start for piece in blobs.pieces] == [0, *(piece.end for piece in blobs.pieces[:-1])]
    assert blobs.pieces[-1].end == WHOLE
    assert source.scheduler.counts.generated_tokens == 0
    blobs.release()
    blobs.load(target)
    events = target.answer(Request(PROMPT, PARAMS))
    assert events[0] == Admitted(WHOLE)
    assert reply(events) == alone(PROMPT)
    assert source.holds_nothing()
    assert target.holds_nothing()


def test_layer_is_given_as_soon_as_it_is_computed(model):
    source = Machine(model, prefill_tokens=256)
    blobs, seen = Blobs(source, PROMPT[:WHOLE]), []
    source.poll = lambda: seen.append(blobs.n_given)
    prefill(source, blobs, PROMPT[:WHOLE])
    per_layer = [len(parts) for parts in model.spec.kept]
    assert [count for count in seen if count] == [sum(per_layer[: n + 1]) for n in range(len(per_layer))]
    blobs.release()


def test_tail_follows_what_the_receiver_has(model, alone):
    """The sender has a shorter prefix than the receiver, or a longer one, which is sent without computing."""
    source, target = Machine(model), Machine(model)
    first, longer = Blobs(source, PROMPT[:48]), Blobs(source, PROMPT[:WHOLE], start=48)
    prefill(source, first, PROMPT[:48])
    assert prefill(source, longer, PROMPT[:WHOLE])[0] == Admitted(48)
    assert longer.pieces[0].start == 48
    again, computed = Blobs(source, PROMPT[:WHOLE]), source.scheduler.counts.prompt_tokens
    assert prefill(source, again, PROMPT[:WHOLE]) == [Admitted(WHOLE), Finished("length")]
    assert source.scheduler.counts.prompt_tokens == computed
    again.load(target)
    assert reply(target.answer(Request(PROMPT, PARAMS))) == alone(PROMPT)
    for blobs in (first, longer, again):
        blobs.release()
    assert source.holds_nothing()


def test_pages_that_are_being_sent_are_not_written_again(model):
    """A second prompt needs the whole pool; what is still lent stays as it was until it is released."""
    source = Machine(model, n_pages=10)
    blobs = Blobs(source, PROMPT[:WHOLE])
    prefill(source, blobs, PROMPT[:WHOLE])
    source.cache.clear()
    assert source.pool.free_pages == 4
    assert source.answer(Request([5] * 40, PARAMS))[-1] == Finished("length")
    blobs.release()
    assert source.holds_nothing()


def test_prompt_beside_others_and_preempted_goes_on_with_the_same_bits(model, alone):
    """Replies beside it take the pages away in the middle of a piece."""
    draw, preemptions = random.Random(3), 0
    for _ in range(6):
        source, target = Machine(model, n_pages=12, prefill_tokens=draw.choice((24, 40, 72))), Machine(model)
        blobs = Blobs(source, PROMPT[:WHOLE])
        others = [
            source.submit(Request([draw.randrange(150) for _ in range(draw.randrange(10, 60))], PARAMS))
            for _ in range(3)
        ]
        _, events = source.submit(Request(PROMPT[:WHOLE], PARAMS, pieces=blobs, priority=draw.choice((-1, 0, 1))))
        source.run()
        preemptions += source.scheduler.counts.preemptions
        assert events[-1] == Finished("length")
        assert all(events[-1] == Finished("length") for _, events in others)
        blobs.release()
        blobs.load(target)
        assert reply(target.answer(Request(PROMPT, PARAMS))) == alone(PROMPT)
        assert source.holds_nothing()
    assert preemptions


def test_pass_that_fails_and_is_taken_again_goes_on_with_the_next_layer(model, alone):
    source, target = Machine(model, prefill_tokens=256), Machine(model)
    blobs = Blobs(source, PROMPT[:WHOLE])
    _, events = source.submit(Request(PROMPT[:WHOLE], PARAMS, pieces=blobs))
    fails = iter([False, True])

    def fail() -> None:
        if next(fails, False):
            raise RuntimeError("a layer could not be read")

    source.poll = fail
    beside = source.submit(Request(PROMPT[:5], PARAMS))[1]  # so that the step is taken again
    source.run()
    assert events[-1] == beside[-1] == Finished("length")
    assert len(blobs.pieces) == 1
    blobs.release()
    blobs.load(target)
    assert reply(target.answer(Request(PROMPT, PARAMS))) == alone(PROMPT)
    assert source.holds_nothing()


def test_receiver_that_fails_ends_its_request_alone(model, alone):
    source = Machine(model)
    blobs = Blobs(source, PROMPT[:WHOLE])
    blobs.failing = True
    _, events = source.submit(Request(PROMPT[:WHOLE], PARAMS, pieces=blobs))
    _, beside = source.submit(Request(PROMPT, PARAMS))
    source.run()
    assert events[-1] == Finished("cancelled")
    assert reply(beside) == alone(PROMPT)
    for piece in blobs.pieces:
        piece.release()
    assert source.holds_nothing()


@pytest.mark.parametrize("n_pieces", [0, 1, 2])
def test_transfer_that_breaks_off_leaves_what_was_verified(model, alone, n_pieces):
    """Of a model with recurrent layers nothing can be used without the states at the end."""
    source, target = Machine(model, prefill_tokens=40), Machine(model)
    blobs = Blobs(source, PROMPT[:WHOLE])
    prefill(source, blobs, PROMPT[:WHOLE])
    blobs.release()
    assert [piece.end for piece in blobs.pieces] == [32, 80, 96]
    blobs.load(target, n_pieces)
    events = target.answer(Request(PROMPT, PARAMS))
    recurrent = model.spec.state_bytes(2) > 0
    assert events[0] == Admitted(0 if recurrent else [0, 32, 80][n_pieces])
    assert reply(events) == alone(PROMPT)
    assert target.holds_nothing()


def test_pages_that_are_received_are_given_up_for_a_request_that_needs_them(model, alone):
    """It waits until the receiver has closed them, and what was verified before is still used afterwards."""
    source, target = Machine(model, prefill_tokens=40), Machine(model, n_pages=9)
    blobs = Blobs(source, PROMPT[:WHOLE])
    prefill(source, blobs, PROMPT[:WHOLE])
    blobs.release()
    arrival, given_up = blobs.load(target, n_pieces=1, close=False), []
    arrival.on_give_up = lambda: given_up.append(True)
    other = [3, *PROMPT[:90]]
    sequence, events = target.submit(Request(other, PARAMS))
    for _ in range(20):
        target.scheduler.step()
    assert given_up == [True]
    assert arrival.given_up
    assert not sequence.ended
    arrival.close()
    target.run()
    assert reply(events) == alone(other)
    assert target.holds_nothing()


def test_nothing_is_expected_where_all_is_known_or_no_room_is(model):
    target = Machine(model, n_pages=8)
    target.answer(Request(PROMPT, PARAMS))
    keys = TokenSequence(0, Request(PROMPT, PARAMS), print, PAGE, frozenset()).keys(WHOLE)
    assert target.cache.known(keys) == len(keys)
    assert target.cache.expect(keys, PROMPT) is None
    long = [*PROMPT[:32], *([7] * 200)]
    other = TokenSequence(0, Request(long, PARAMS), print, PAGE, frozenset()).keys(len(long))
    assert target.cache.expect(other, long) is None
    assert target.holds_nothing()
