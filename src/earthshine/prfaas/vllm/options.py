"""The connector's configuration: `kv_connector_extra_config` of vLLM, read once when vLLM starts.

Everything is the operator's; nothing of it can be set by a request. Unknown keys, values of another type and settings
that contradict each other are refused with UsageError, which ends vLLM's start.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from earthshine.errors import UsageError
from earthshine.net.access import Access, is_loopback, read_keys
from earthshine.net.listen import ListenOptions
from earthshine.prfaas.announce import announcement
from earthshine.prfaas.profile import profile_from
from earthshine.prfaas.wire import PeerAddress, PrefillPeer, Trust
from earthshine.untrusted import parse_object, read_file, real_path, shown

_WINDOW_BYTES = 8 << 20  # of a transfer, received and not yet verified
_MOST_TOKEN_BYTES = 1 << 10
_MOST_PROFILE_BYTES = 1 << 20
_TYPES: dict[type, tuple[tuple[type, ...], str]] = {  # of a default: what is taken instead, in types and in words
    str: ((str,), "a text"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    tuple: ((list, tuple), "a list of texts"),
    type(None): ((str,), "a path"),
}


@dataclass(frozen=True, slots=True)
class ConnectorOptions:
    """`model`: the name that both ends give the model, as Earthshine's fingerprint where one of them is Earthshine.

    listen: where peers may ask for what this vLLM computes; "" for nowhere. With tls_cert and tls_key, and keys, a file
    of the tokens that peers may present. submit: this vLLM's own HTTP server, which is given the prompts that peers ask
    for; "" where a router gives it the prompts. submit_key: a file with its API key. profile: a file of what
    `earthshine prfaas profile` measured here, from which Earthshine's servers forecast how long this vLLM takes.
    peers: whose caches this vLLM fetches, best first. token: a file with the token for them. peer_ca, peer_pins: whom
    to trust, see `wire.Trust`. allow_plain: hosts that are reached, or listened on, without TLS though not loopback.
    connections: to each peer. min_tokens: fewer are computed rather than fetched. transfers: at most, at once.
    deadline_seconds: of a transfer. retry_seconds: how long nothing is fetched after one failed. hold_seconds: how long
    a prompt with `"kv_transfer_params": {"do_remote_decode": true}` is kept for its peer.
    """

    model: str = ""
    listen: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    keys: Path | None = None
    submit: str = ""
    submit_key: Path | None = None
    profile: Path | None = None
    peers: tuple[str, ...] = ()
    token: Path | None = None
    peer_ca: Path | None = None
    peer_pins: tuple[str, ...] = ()
    allow_plain: tuple[str, ...] = ()
    connections: int = 4
    min_tokens: int = 512
    transfers: int = 4
    deadline_seconds: float = 120.0
    retry_seconds: float = 30.0
    hold_seconds: float = 60.0

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> "ConnectorOptions":
        """Raises UsageError."""
        known = {field.name: field.default for field in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in given.items():
            if key not in known:
                raise UsageError(f"The connector has no setting {shown(key)}; it has {', '.join(known)}.")
            values[key] = _converted(key, value, type(known[key]))
        made = cls(**values)
        made._check()
        return made

    def require_role(self, *, producer: bool, consumer: bool) -> None:
        """Raises UsageError unless the settings serve vLLM's kv_role."""
        if producer and not consumer and not self.listen:
            raise UsageError('A kv_producer needs "listen", such as "earthshine+plain://127.0.0.1:7100".')
        if consumer and not producer and not self.peers:
            raise UsageError('A kv_consumer needs "peers", a list such as ["earthshine://10.0.0.2:7100"].')
        if not self.listen and not self.peers:
            raise UsageError('The connector needs "listen", "peers" or both.')
        if (self.listen and not producer) or (self.peers and not consumer):
            raise UsageError('"listen" is for a kv_producer, "peers" for a kv_consumer; kv_both has both.')

    def listen_options(self) -> ListenOptions:
        """Raises UsageError for an address that others can reach without TLS or tokens."""
        address = PeerAddress.parse(self.listen)
        address.require_allowed(self.allow_plain)
        if address.plain == (self.tls_cert is not None):
            raise UsageError("An earthshine:// address to listen on needs tls_cert and tls_key; a plain one has none.")
        return ListenOptions(address.host, address.port, self.tls_cert, self.tls_key)

    def access(self) -> Access:
        """Raises UsageError for a file of keys that can't be used, or a listener that others can reach without one."""
        if self.keys is None and not is_loopback(PeerAddress.parse(self.listen).host):
            raise UsageError(f"Other machines can reach {shown(self.listen)}, so it needs keys, a file of tokens.")
        return Access(() if self.keys is None else read_keys(self.keys))

    def peer(self, url: str) -> PrefillPeer:
        """Raises UsageError."""
        trust = Trust(self.peer_ca, self.peer_pins)
        token = b"" if self.token is None else _secret(self.token, "The file with the peers' token").encode()
        return PrefillPeer(
            url,
            token=token,
            trust=trust,
            connections=self.connections,
            window_bytes=_WINDOW_BYTES,
            allow_plain=self.allow_plain,
        )

    def about(self) -> bytes:
        """What the listener says of itself; b"" for nothing. Raises UsageError for a file that is no profile."""
        if self.profile is None:
            return b""
        what = f"The profile {shown(self.profile)}"
        raw = read_file(self.profile, what, _MOST_PROFILE_BYTES, UsageError)
        return announcement(profile_from(parse_object(raw, what, UsageError), what))

    def submit_secret(self) -> str:
        return "" if self.submit_key is None else _secret(self.submit_key, "The file with vLLM's API key")

    def _check(self) -> None:
        if not self.model:
            raise UsageError('The connector needs "model": the name that both ends give the model.')
        if self.min_tokens < 1 or self.transfers < 1:
            raise UsageError("The connector's min_tokens and transfers are at least 1.")
        if min(self.deadline_seconds, self.retry_seconds, self.hold_seconds) < 0 or self.deadline_seconds == 0:
            raise UsageError("The connector's seconds are not negative, and deadline_seconds is more than 0.")
        for url in (*self.peers, *([self.listen] if self.listen else [])):
            PeerAddress.parse(url).require_allowed(self.allow_plain)
        if self.submit and not self.listen:
            raise UsageError('"submit" gives vLLM the prompts that peers ask for, so it needs "listen".')


def _converted(key: str, value: Any, kind: type) -> Any:
    """The value for a setting whose default is of type `kind`. Raises UsageError."""
    types, words = _TYPES[kind]
    sound = isinstance(value, types) and not isinstance(value, bool)
    if not sound or (kind is tuple and not all(isinstance(each, str) for each in value)):
        raise UsageError(f"The connector's {key} is {shown(value)}; {words} is right.")
    if kind is tuple:
        return tuple(value)
    return real_path(Path(value), UsageError) if kind is type(None) else value


def _secret(path: Path, what: str) -> str:
    return read_file(path, what, _MOST_TOKEN_BYTES, UsageError).decode("utf-8", "replace").strip()
