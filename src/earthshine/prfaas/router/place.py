"""One place as the router sees it: what was sent there and has not ended, in seconds of work, and what it has shown of
its speed. Requests are known by their tickets."""

from dataclasses import dataclass, field

from earthshine.prfaas.curve import Curve
from earthshine.prfaas.profile import Profile
from earthshine.prfaas.route import ClusterState
from earthshine.prfaas.router.circuit import Circuit
from earthshine.prfaas.router.learned import LearnedSeconds
from earthshine.prfaas.router.setup import PlaceSetup

_CROWDING_SECONDS = 0.01  # that each sequence in a batch costs the next one: equal places then share the load
_SHARE = 0.1  # of the newest value in a mean
_FRESH_SECONDS = 5.0  # for which a learned curve is used without being made again
_NO_CACHE = Curve(((1.0, 0.0),))  # bytes are unknown: what is learned of a borrowed prompt includes its transfer


@dataclass(eq=False, slots=True)
class Work:
    """A prompt that a place computes, as estimated when it was sent."""

    seconds: float
    uncached: int
    sent: float
    streamed: bool  # its first token will be seen


@dataclass(eq=False, slots=True)
class LivePlace:
    """`given`: its profile in the fleet's file. `work`: prompts in the order in which they were sent; a place that
    prefills for others has them too. `others`: requests waiting there that other senders sent."""

    setup: PlaceSetup
    decodes: bool
    given: Profile | None = None
    n_prefill: int = 1
    n_decode: int = 1
    circuit: Circuit = field(default_factory=Circuit)
    learned: LearnedSeconds = field(default_factory=LearnedSeconds)
    work: dict[Work, None] = field(default_factory=dict)
    sequences: int = 0  # requests sent there that have not ended
    others: int = 0
    models: frozenset[str] | None = None  # None: not known yet
    served: int = 0
    reply_seconds: float = 1.0  # mean, from the first token to the end
    step_seconds: float = 0.02  # mean, of a decode step
    prompt_seconds: float = 0.1  # mean
    alive_at: float = 0.0  # when the last byte came from it
    _queued: float = 0.0  # seconds of all work
    _head_since: float = 0.0
    _last_first: float = 0.0
    _profile: tuple[float, Profile] | None = None

    @property
    def name(self) -> str:
        return self.setup.name

    @property
    def batch(self) -> int:
        return self.given.batch if self.given and self.given.batch else self.setup.batch

    def profile(self, now: float) -> Profile:
        """The given one, or what was learned."""
        if self.given is not None:
            return self.given
        if self._profile is None or now - self._profile[0] > _FRESH_SECONDS:
            step = Curve(((1.0, self.step_seconds),)) if self.decodes else None
            found = Profile(self.name, "learned", self.learned.curve(now), _NO_CACHE, step, self.batch, False, 0.0)
            self._profile = (now, found)
        return self._profile[1]

    def add(self, now: float, work: Work) -> None:
        """A prompt joins the queue."""
        if not self.work:
            self._head_since, self._queued = now, 0.0
        self.work[work] = None
        self._queued += work.seconds
        self.prompt_seconds += _SHARE * (work.seconds - self.prompt_seconds)

    def remove(self, now: float, work: Work) -> None:
        """A prompt ended: its first token came, or its request is over."""
        if work in self.work:
            if next(iter(self.work)) is work:
                self._head_since = now
            del self.work[work]
            self._queued -= work.seconds

    def computed(self, now: float, work: Work) -> None:
        """The first token of a streamed reply came: what the prompt took alone is learned."""
        self.learned.observe(now, work.uncached, now - max(work.sent, self._last_first))
        self._last_first, self._profile = now, None
        self.remove(now, work)

    def replied(self, seconds: float, output_tokens: int | None) -> None:
        """A reply ended, `seconds` after its first token."""
        self.reply_seconds += _SHARE * (seconds - self.reply_seconds)
        if output_tokens and output_tokens > 1:
            step = max(seconds / (output_tokens - 1), 1e-6)
            self.step_seconds += _SHARE * (step - self.step_seconds)

    def wait_seconds(self, now: float) -> float:
        """Until a prompt that joins now begins. Prompts whose first token is not seen count for as long as estimated,
        one after the other."""
        while self.work:
            head = next(iter(self.work))
            left = head.seconds - (now - self._head_since)
            if left > 0 or head.streamed:
                break
            del self.work[head]
            self._queued -= head.seconds
            self._head_since += head.seconds
        if not self.work:
            return self.others * self.prompt_seconds / max(1, self.n_prefill)
        queued = self._queued - min(head.seconds, now - self._head_since)
        return (max(0.0, queued) + self.others * self.prompt_seconds) / max(1, self.n_prefill)

    def state(self, now: float, usable: bool, extra: float) -> ClusterState:
        """What `decide` reads. extra: seconds by which another place is preferred that is equal otherwise."""
        if not usable:
            return ClusterState(0, 0)
        crowded = max(0, self.sequences + self.others + 1 - self.batch * max(1, self.n_decode))
        wait = crowded / self.batch * self.reply_seconds + self.sequences * _CROWDING_SECONDS + extra
        depth = len(self.work) + self.others
        return ClusterState(self.n_prefill, self.n_decode if self.decodes else 0, self.wait_seconds(now), depth, wait)

    def problem(self, now: float) -> str:
        """Why the place gets no request now, or ""."""
        return "is drained" if self.setup.drain else self.circuit.sentence(now)
