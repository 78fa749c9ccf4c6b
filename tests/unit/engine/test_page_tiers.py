"""Pages from memory, disk and a peer, through the real scheduler and gleam: what a request gets is what it gets alone.

The peer stands for a remote prefill: another scheduler has computed the prompt, and its pages come as blobs, late,
never, damaged, or not after some point.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path

import pytest

import earthshine
from earthshine.engine import Admitted, Finished, Request, SamplingParams, Session, TokenEvent, load_model
from earthshine.engine.load import LoadedModel
from earthshine.engine.scheduler import Scheduler
from earthshine.engine.sequence import TokenSequence
from earthshine.errors import BlobError
from earthshine.kv import BlobLayout, PageBlobs, PageFiles, PageKey, PageParts, PagePool, PrefixCache
from earthshine.plan import PlanArgs

GLEAM = Path(earthshine.__file__).parent / "gleam"
PAGE = 16
PROMPT = [(7 * i * i + 3 * i + 11) % 6000 for i in range(10 * PAGE + 5)]
PARAMS = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def model() -> Iterator[LoadedModel]:
    loaded = load_model(GLEAM, PlanArgs(context_tokens=512, batch=4))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def alone(model: LoadedModel) -> list[TokenEvent | Finished]:
    pool = PagePool(model.spec.kept, PAGE, 16, model.decoder.dtype)
    session = Session(model.decoder, pool, fingerprint=model.fingerprint)
    session.sync(PROMPT)
    return list(session.generate(PARAMS))


def layout(model: LoadedModel) -> BlobLayout:
    return BlobLayout.of(model.spec.kept, model.fingerprint, model.decoder.dtype)


class Peer:
    """Pages that another machine has computed, as a tier that is read over a wire.

    `faults`: what happens to a page by its place in the sequence; reads wait for `open`.
    """

    def __init__(self, blobs: PageBlobs) -> None:
        self._blobs, self._pages = blobs, dict[PageKey, bytes]()
        self.faults: dict[int, str] = {}
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Event()
        self.served: list[int] = []
        self.is_closed = False

    def __contains__(self, key: PageKey) -> bool:
        return key in self._pages

    def has_state(self, key: PageKey) -> bool:
        return False

    def read(self, key: PageKey, tokens: Sequence[int]) -> PageParts | None:
        place = key.start // PAGE
        self.asked.set()
        assert self.open.wait(60)
        raw, fault = bytearray(self._pages[key]), self.faults.get(place)
        if fault == "gone":
            return None
        if fault == "unreachable":
            raise ConnectionResetError("the peer has closed the connection")
        if fault == "damaged":
            raw[-40] ^= 1
        if fault == "cut":
            del raw[len(raw) // 2 :]
        try:
            parts = self._blobs.read(BytesIO(raw), self._blobs.header(key, tokens))
        except BlobError:
            return None
        self.served.append(place)
        return parts

    def close(self) -> None:
        self.is_closed = True

    # What the other machine does with the pages that it computes.

    def write(self, key: PageKey, tokens, parts, done, *, with_state=False) -> None:
        file = BytesIO()
        self._blobs.write(file, self._blobs.header(key, tokens), parts())
        self._pages[key] = file.getvalue()
        done(True)

    def used(self, keys: Iterable[PageKey]) -> None: ...


class Machine:
    """A scheduler over pages of its own."""

    def __init__(self, model: LoadedModel, cache: PrefixCache, pool: PagePool) -> None:
        self.cache, self.pool, self._number = cache, pool, 0
        self.scheduler = Scheduler(
            model.decoder, pool, cache, max_running=4, context_tokens=512, prefill_tokens=64, max_stall=1.0
        )

    def submit(self, tokens: list[int]) -> tuple[TokenSequence, list]:
        events: list = []
        self._number += 1
        sequence = TokenSequence(self._number, Request(tokens, PARAMS), events.append, PAGE, frozenset())
        self.scheduler.queue.add(sequence)
        return sequence, events

    def run(self) -> None:
        while self.scheduler.queue.busy:
            self.scheduler.step()

    def reply(self, tokens: list[int]) -> list:
        _, events = self.submit(tokens)
        self.run()
        return events

    def holds_nothing(self) -> bool:
        self.cache.settle()
        self.cache.clear()
        return self.pool.free_pages == self.pool.n_pages


@pytest.fixture
def peer(model: LoadedModel) -> Peer:
    """With all full pages of the prompt."""
    found = Peer(PageBlobs(layout(model), PAGE))
    pool = PagePool(model.spec.kept, PAGE, 16, model.decoder.dtype)
    Machine(model, PrefixCache(pool, [], found), pool).reply(PROMPT)
    assert len(found._pages) == 10
    return found


@pytest.fixture
def files(model: LoadedModel, tmp_path: Path) -> Iterator[PageFiles]:
    made = PageFiles(tmp_path / "pages", layout(model), PAGE, 1 << 26)
    yield made
    made.close()


@pytest.fixture
def machine(model: LoadedModel, peer: Peer, files: PageFiles) -> Iterator[Machine]:
    """Memory holds the first two pages of the prompt, the disk the next three too, the peer all."""
    pool = PagePool(model.spec.kept, PAGE, 24, model.decoder.dtype)
    apart = PrefixCache(pool, [files], files)
    made = Machine(model, apart, pool)
    made.reply(PROMPT[: 5 * PAGE + 1])
    assert files.flush(60)
    assert made.holds_nothing()
    cache = PrefixCache(pool, [files, peer], files)
    made = Machine(model, cache, pool)
    made.reply(PROMPT[: 2 * PAGE + 1])
    assert files.stats.pages_read == 2
    assert peer.served == []
    yield made
    cache.close()


def outcome(events: list) -> list:
    return [event for event in events if not isinstance(event, Admitted)]


def test_pages_come_from_memory_disk_and_peer(machine, peer, files, alone):
    events = machine.reply(PROMPT)
    assert events[0] == Admitted(10 * PAGE)
    assert outcome(events) == alone
    assert files.stats.pages_read == 2 + 3
    assert peer.served == [5, 6, 7, 8, 9]
    assert files.flush(60)
    assert files.stats.pages == 10  # what a peer sent is kept
    assert machine.holds_nothing()


@pytest.mark.parametrize("fault", ["gone", "unreachable", "damaged", "cut"])
@pytest.mark.parametrize("place", [5, 7, 9])
def test_page_that_a_peer_fails_to_deliver_is_computed(machine, peer, alone, fault, place):
    """And those after it, though the peer has them."""
    peer.faults[place] = fault
    events = machine.reply(PROMPT)
    assert events[0] == Admitted(place * PAGE)
    assert outcome(events) == alone
    assert peer.served == list(range(5, place))
    assert machine.holds_nothing()


def test_page_that_is_damaged_on_disk_comes_from_the_peer(machine, peer, files, alone, tmp_path):
    sequence, events = machine.submit(PROMPT)
    (path,) = tmp_path.rglob(f"{sequence.keys(4 * PAGE)[3].key.hex()}*")
    raw = bytearray(path.read_bytes())
    raw[-40] ^= 1
    path.write_bytes(raw)
    machine.run()
    assert files.stats.damaged == 1
    assert peer.served == [3, 5, 6, 7, 8, 9]
    assert events[0] == Admitted(10 * PAGE)
    assert outcome(events) == alone


def test_slow_peer_delays_no_other(machine, peer, alone):
    """Pages from disk arrive and requests are computed while the peer has not answered."""
    peer.open.clear()
    slow, slow_events = machine.submit(PROMPT)
    while not peer.asked.is_set():
        machine.scheduler.step()
    quick, _ = machine.submit([5, *PROMPT[:40]])
    from_disk, events = machine.submit(PROMPT[: 5 * PAGE + 1])
    while not (quick.ended and from_disk.ended):
        machine.scheduler.step()
    assert not slow.ended
    assert slow_events == []
    assert events[0] == Admitted(5 * PAGE)
    peer.open.set()
    machine.run()
    assert slow_events[0] == Admitted(10 * PAGE)
    assert outcome(slow_events) == alone
    assert machine.holds_nothing()


def test_cancelled_request_does_not_wait_for_the_peer(machine, peer, alone):
    """The page that is on its way comes back when the peer has answered, and nothing is written to it before."""
    peer.open.clear()
    slow, events = machine.submit(PROMPT)
    while not peer.asked.is_set():
        machine.scheduler.step()
    slow.cancelled = True
    machine.run()
    assert outcome(events) == [Finished("cancelled")]
    machine.cache.clear()
    assert machine.pool.free_pages == machine.pool.n_pages - 1
    assert machine.cache.room() == machine.pool.n_pages
    peer.open.set()
    while not machine.cache.make_room(machine.pool.n_pages):
        machine.cache.wait(60)
    assert outcome(machine.reply(PROMPT)) == alone
    assert machine.holds_nothing()


def test_closing_the_cache_closes_its_tiers(machine, peer, files):
    machine.cache.close()
    assert peer.is_closed
    kept: list[bool] = []
    files.write(PageKey(bytes(32), bytes(32), 0), [0] * PAGE, list, kept.append)
    assert kept == [False]
