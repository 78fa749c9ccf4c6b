"""The peers of `serve --prefill`: who they are and how they are trusted, as the operator says."""

from dataclasses import dataclass
from pathlib import Path

from earthshine.cli.place import forecast_of
from earthshine.engine import Engine, LoadedModel
from earthshine.errors import UsageError
from earthshine.prfaas.client import RemotePrefill
from earthshine.prfaas.live import LiveFleet
from earthshine.prfaas.wire import PrefillPeer, Trust
from earthshine.server.http.log import Log
from earthshine.untrusted import read_file, real_path

_MOST_TOKEN_BYTES = 1024
_BYTES_PER_GBIT = 1e9 / 8


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """The options of the command. `link`: Gb/s to assume of a link before it is measured."""

    urls: tuple[str, ...] = ()
    token_file: Path | None = None
    ca: Path | None = None
    pins: tuple[str, ...] = ()
    allow_plain: tuple[str, ...] = ()
    link: float = 1.0
    above: int | None = None


def open_peers(options: PeerOptions) -> dict[str, PrefillPeer]:
    """The peers by URL; no connection is made yet. Raises UsageError."""
    if not 0 < options.link <= 1e6:
        raise UsageError(f"--prefill-link must be above 0 Gb/s and at most 1e6, not {options.link:g}.")
    if options.above is not None and options.above < 0:
        raise UsageError(f"--prefill-above must be 0 tokens or more, not {options.above}.")
    token = b"" if options.token_file is None else _token(options.token_file)
    found: dict[str, PrefillPeer] = {}
    for url in options.urls:
        encrypted = not url.strip().startswith("earthshine+plain:")
        trust = Trust(options.ca, options.pins) if encrypted else None
        peer = PrefillPeer(url, token=token, trust=trust, allow_plain=options.allow_plain)
        if found.setdefault(str(peer.address), peer) is not peer:
            raise UsageError(f"--prefill names {peer.address} twice.")
    return found


def borrowing(
    engine: Engine,
    loaded: LoadedModel,
    folder: Path,
    peers: dict[str, PrefillPeer],
    options: PeerOptions,
    log: Log,
) -> RemotePrefill:
    """The engine with its peers, of which nothing is known yet: each is taken to be as fast as this machine."""
    here = forecast_of(loaded, folder)
    rates = dict.fromkeys(peers, options.link * _BYTES_PER_GBIT)
    fleet = LiveFleet(here, dict.fromkeys(peers, here), rates, engine.context_tokens)
    for peer in peers.values():
        peer.connect()
    return RemotePrefill(engine, peers, fleet, log.event, here, options.above)


def _token(path: Path) -> bytes:
    raw = read_file(real_path(path, UsageError), str(path), _MOST_TOKEN_BYTES, UsageError).strip()
    if not raw or any(not 32 < byte < 127 for byte in raw):
        raise UsageError(f"{path} must hold one token of printable characters and nothing else.")
    return raw
