"""The address of a peer as an operator writes it, and whether it may be reached without TLS."""

from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from earthshine.errors import UsageError
from earthshine.net.access import is_loopback
from earthshine.untrusted import shown

_TLS, _PLAIN = "earthshine", "earthshine+plain"


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a sender of caches listens."""

    host: str
    port: int
    plain: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{_PLAIN if self.plain else _TLS}://{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> "PeerAddress":
        """From `earthshine://host:port` or `earthshine+plain://host:port`. Raises UsageError for anything else."""
        try:
            parts = urlsplit(text.strip())
            host, port = parts.hostname, parts.port
        except ValueError:
            parts, host, port = urlsplit(""), None, None
        more = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
        if parts.scheme not in (_TLS, _PLAIN) or not host or not port or more:
            raise UsageError(
                f"{shown(text)} is not the address of a peer; write {_TLS}://host:port, or {_PLAIN}://host:port for "
                "one without TLS."
            )
        return cls(host, port, parts.scheme == _PLAIN)

    def require_allowed(self, allow_plain: Collection[str] = ()) -> None:
        """Raises UsageError for a plain address that is neither loopback nor named in `allow_plain`."""
        require_plain_allowed(self.host, self.plain, allow_plain)


def require_plain_allowed(host: str, plain: bool, allow_plain: Collection[str]) -> None:
    """Raises UsageError where caches and tokens would cross a network in the clear that the operator did not name."""
    if plain and not is_loopback(host) and host not in allow_plain:
        raise UsageError(
            f"Without TLS, prompts, caches and tokens would cross the network to {shown(host)} in the clear; use TLS, "
            f"or name the host with --allow-plain {host} if its network is trusted."
        )
