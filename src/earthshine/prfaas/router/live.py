"""The fleet as the router knows it, and the choice of a place for a request by `decide`.

What is known is what the router itself sent and what finished. A place that the fleet's file lacks has a learned
profile; then the bytes of its caches are unknown, and what is learned of borrowed prompts includes their transfer.
"""

import math
import zlib
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from earthshine.errors import UnavailableError
from earthshine.prfaas.control import Controller
from earthshine.prfaas.decide import decide
from earthshine.prfaas.fleet import Cluster, Fleet, Link
from earthshine.prfaas.lengths import LogNormal
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.profile import Profile
from earthshine.prfaas.route import FleetState, LinkState, RouteRequest
from earthshine.prfaas.router.blocks import NO_BLOCKS, Blocks
from earthshine.prfaas.router.place import LivePlace, Work
from earthshine.prfaas.router.prefix_index import PrefixIndex
from earthshine.prfaas.router.setup import PlaceSetup, RouterSetup

LENGTHS = LogNormal(9.9, 1.0)  # of prompts until some are observed: the paper's
OUTPUT_TOKENS = 512.0  # of a reply until some are observed
TOKENS_PER_BYTE = 0.25  # of a prompt's text until a place counted one
_MOST_SOLVED = 8  # clusters of a kind for which `control` solves a threshold
_SHARE = 0.1  # of the newest value in a mean
_AFFINITY_SECONDS = 1e-3  # at most; between equal places a prompt's beginning decides, also after a restart
_MOST_CONVERSATIONS = 4096


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a request asks to compute. `text_bytes`: of the prompt; `streamed`: its first token will be seen.
    `model`: that it names."""

    blocks: Blocks = NO_BLOCKS
    text_bytes: int = 0
    beginning: int = 0  # a digest of the text's beginning
    streamed: bool = False
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a request goes. `lender`: the place that prefills, if another. `tokens`, `reused`: estimated, of the
    prompt. `first_seconds`: until the first token, likewise; `usd`: of borrowed compute."""

    place: LivePlace
    lender: LivePlace | None
    reason: str
    tokens: int = 0
    reused: int = 0
    prefill_seconds: float = 0.0
    first_seconds: float = 0.0
    sent_bytes: float = 0.0
    usd: float = 0.0


@dataclass(eq=False, slots=True)
class Ticket:
    """A request that was sent to its place and has not ended there."""

    choice: Choice
    prompt: Prompt
    work: Work
    first_at: float | None = None
    ended: bool = False


@dataclass(eq=False)
class LiveFleet:
    """`index` bounds what is known of prefixes; all else is bounded by the number of requests that are under way."""

    setup: RouterSetup
    index: PrefixIndex = field(default_factory=PrefixIndex)
    places: dict[str, LivePlace] = field(default_factory=dict)
    links: dict[tuple[str, str], LinkState] = field(default_factory=dict)
    tokens_per_byte: float = TOKENS_PER_BYTE
    threshold: float = math.inf
    why: str = ""  # the last change of the threshold
    controller: Controller | None = None
    _made: tuple[list[Profile], Fleet] | None = None
    _policy: Policy = field(default_factory=Policy)
    _conversations: OrderedDict[str, str] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.replace(self.setup, 0.0)

    def replace(self, setup: RouterSetup, now: float) -> None:
        """Another setup: places that stay keep their state, those that are gone get no more requests."""
        before, self.setup = self.places, setup
        self.places = {}
        for each, decodes in (*((p, True) for p in setup.decode), *((p, False) for p in setup.prefill)):
            self.places[each.name] = self._placed(each, decodes, before.get(each.name))
        for name in before.keys() - self.places.keys():
            self.index.forget(name)
        worth = math.inf if setup.usd_per_second_saved is None else setup.usd_per_second_saved
        self._policy = Policy("scarce", usd_per_second_saved=worth)  # no place is told to fetch another's prefix
        kept = self.links
        self._made = None
        self.links = {ends: kept.get(ends) or LinkState(link.bytes_per_second) for ends, link in self._links().items()}
        self._control(now)

    def _placed(self, setup: PlaceSetup, decodes: bool, old: LivePlace | None) -> LivePlace:
        cluster = self.setup.fleet.clusters.get(setup.name)
        given = None if cluster is None else cluster.profile
        counts = (1, 1) if cluster is None else (max(1, cluster.n_prefill), max(1, cluster.n_decode))
        if old is None or old.decodes != decodes or (old.setup.site, old.given) != (setup.site, given):
            self.index.forget(setup.name)
            return LivePlace(setup, decodes, given, *counts)
        old.setup, (old.n_prefill, old.n_decode) = setup, counts
        return old

    def _links(self) -> dict[tuple[str, str], Link]:
        """From each place that prefills to each that decodes; where the file knows both, only those that it has."""
        fleet, found = self.setup.fleet, {}
        for source in self.setup.prefill:
            for target in self.setup.decode:
                ends = (source.name, target.name)
                if ends in fleet.links:
                    found[ends] = fleet.links[ends]
                elif not (source.name in fleet.clusters and target.name in fleet.clusters):
                    found[ends] = Link(*ends, self.setup.link_bytes_per_second)
        return found

    def _control(self, now: float) -> None:
        """A controller for these places, where there is something to solve."""
        self.controller = None
        solvable = 0 < len(self.setup.prefill) <= _MOST_SOLVED and len(self.setup.decode) <= _MOST_SOLVED
        if self.setup.threshold is not None:
            self.threshold, self.why = self.setup.threshold, "as configured"
        elif solvable and self.links:
            self.controller = Controller(self.fleet(now), self._policy, LENGTHS, OUTPUT_TOKENS)
            self.threshold, self.why = self.controller.threshold, "solved for the expected lengths"
        else:
            self.threshold = math.inf
            self.why = "too many places to solve one" if self.setup.prefill else "no place to borrow from"

    def fleet(self, now: float) -> Fleet:
        """The places with their profiles, given or learned."""
        profiles = [place.profile(now) for place in self.places.values()]
        if self._made is None or self._made[0] != profiles:
            clusters = {
                name: Cluster(name, profile, p.n_prefill, p.n_decode if p.decodes else 0)
                for (name, p), profile in zip(self.places.items(), profiles, strict=True)
            }
            self._made = (profiles, Fleet(clusters, self._links()))
        return self._made[1]

    def state(self, now: float, usable: Collection[str], beginning: int = 0) -> FleetState:
        """What `decide` reads, with requests for the `usable` places only."""
        clusters = {
            name: place.state(now, name in usable, _preference(name, beginning)) for name, place in self.places.items()
        }
        return FleetState(self.fleet(now), clusters, self.links, self.threshold)

    def usable(self, now: float, tried: Collection[str] = (), model: str | None = None) -> set[str]:
        """Names of the places that may get a request: of those that list its model, if any does."""
        found = {n for n, p in self.places.items() if n not in tried and not p.setup.drain and p.circuit.allows(now)}
        if any(p.models is not None and model in p.models for p in self.places.values()):
            found -= {n for n, p in self.places.items() if p.decodes and p.models is not None and model not in p.models}
        return found

    def choose(self, prompt: Prompt, now: float, tried: Collection[str] = (), near: str | None = None) -> Choice:
        """The place for a request that has not been `tried`. near: the conversation that it continues.

        Raises UnavailableError, which says of each place why it gets none.
        """
        usable = self.usable(now, tried, prompt.model)
        decoding = [self.places[name] for name in usable if self.places[name].decodes]
        if not decoding:
            raise UnavailableError(f"No place can take the request: {self._problems(now, tried)}.")
        if near is not None and self._conversations.get(near) in usable:
            return Choice(self.places[self._conversations[near]], None, "where its conversation is")
        if not prompt.text_bytes:
            place = min(decoding, key=lambda each: (each.sequences, each.name))
            return Choice(place, None, f"{place.name} has the fewest requests")
        tokens = max(1, int(prompt.text_bytes * self.tokens_per_byte))
        cached = {name: self.index.find(name, prompt.blocks, now, self.tokens_per_byte) for name in usable}
        setup = self.setup
        asked = RouteRequest(tokens, cached, setup.deadline_seconds, setup.usd_ceiling)
        route = decide(asked, self.state(now, usable, prompt.beginning), self._policy)
        lender = self.places[route.prefill] if route.prefill != route.decode else None
        return Choice(
            self.places[route.decode], lender, route.reason, tokens, route.reused_tokens, route.first_token.prefill,
            route.first_token.total, route.send.nbytes if route.send else 0.0, route.usd,
        )  # fmt: skip

    def _problems(self, now: float, tried: Collection[str]) -> str:
        return "; ".join(
            f"{place.name} {'failed' if place.name in tried else place.problem(now) or 'lacks the model'}"
            for place in self.places.values()
            if place.decodes
        )

    def begin(self, choice: Choice, prompt: Prompt, now: float) -> Ticket:
        """The request is sent."""
        worker = choice.lender or choice.place
        work = Work(choice.prefill_seconds, max(1, choice.tokens - choice.reused), now, prompt.streamed)
        choice.place.sequences += 1
        choice.place.circuit.begun()
        choice.place.alive_at = max(choice.place.alive_at, now) if choice.place.sequences > 1 else now
        if prompt.text_bytes:
            worker.add(now, work)
            if self.controller is not None:
                self.controller.observe(now, work.uncached)
        if choice.lender is not None:
            self._queue(choice, choice.sent_bytes)
        return Ticket(choice, prompt, work)

    def _queue(self, choice: Choice, nbytes: float) -> None:
        link = self.links.get((choice.lender.name, choice.place.name)) if choice.lender else None
        if link is not None:
            link.queued_bytes = max(0.0, link.queued_bytes + nbytes)

    def first(self, ticket: Ticket, now: float) -> None:
        """The first token came."""
        if ticket.first_at is not None or ticket.ended:
            return
        ticket.first_at = now
        (ticket.choice.lender or ticket.choice.place).computed(now, ticket.work)
        self._queue(ticket.choice, -ticket.choice.sent_bytes)

    def end(
        self, ticket: Ticket, now: float, *, served: bool, prompt_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> None:  # fmt: skip
        """The request is over there. served: with a whole reply, for which the place counted these tokens."""
        if ticket.ended:
            return
        ticket.ended = True
        choice, place = ticket.choice, ticket.choice.place
        place.sequences -= 1
        (choice.lender or place).remove(now, ticket.work)
        if ticket.first_at is None:
            self._queue(choice, -choice.sent_bytes)
        if not served:
            return
        place.served += 1
        if ticket.first_at is not None:
            place.replied(now - ticket.first_at, output_tokens)
        for each in (place, choice.lender):
            if each is not None:
                self.index.keep(each.name, ticket.prompt.blocks, now)
        if ticket.prompt.text_bytes:
            self._counted(ticket, prompt_tokens, output_tokens)

    def _counted(self, ticket: Ticket, prompt_tokens: int | None, output_tokens: int | None) -> None:
        if prompt_tokens:
            ratio = min(max(prompt_tokens / ticket.prompt.text_bytes, 0.01), 4.0)
            self.tokens_per_byte += _SHARE * (ratio - self.tokens_per_byte)
        if self.controller is not None and output_tokens:
            self.controller.replied(output_tokens)

    def remember(self, conversation: str, place: str) -> None:
        """Later requests of this conversation go to the same place."""
        self._conversations[conversation] = place
        self._conversations.move_to_end(conversation)
        while len(self._conversations) > _MOST_CONVERSATIONS:
            self._conversations.popitem(last=False)

    def tick(self, now: float) -> str:
        """Solves the threshold again; returns why it changed, or "". Takes milliseconds to tenths of a second."""
        if self.controller is None:
            return ""
        before = self.threshold
        control = self.controller.tick(now, self.state(now, self.usable(now)))
        self.threshold = control.threshold
        if self.threshold != before:
            self.why = control.why
        return control.why if self.threshold != before else ""


def _preference(name: str, beginning: int) -> float:
    mixed = (beginning ^ zlib.crc32(name.encode())) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    return _AFFINITY_SECONDS * mixed / (1 << 64)


def by_name(places: Mapping[str, LivePlace]) -> list[LivePlace]:
    """Places that decode first, then those that prefill."""
    return sorted(places.values(), key=lambda place: not place.decodes)
