"""Who may connect, and what a handle opens: TLS and pins, tokens, handles, replayed bytes."""

import contextlib
import hashlib
import os
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from earthshine.errors import OverloadError, UsageError
from earthshine.net.access import Access, make_access
from earthshine.net.listen import ListenOptions
from earthshine.prfaas.wire import Handles, Reason, Trust, WireError, handles
from earthshine.prfaas.wire.frames import HEAD
from earthshine.prfaas.wire.link import Link
from earthshine.prfaas.wire.messages import Hello, Request, Welcome

from .ends import SECONDS, Pieces, Sink, connected, eventually, request, serving

TOKEN = b"a-token-of-twenty-four-b"


@pytest.fixture(scope="session")
def expired(tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]) -> tuple[Path, Path]:
    """A certificate of localhost whose validity ended in 2021, and its key."""
    folder = tmp_path_factory.mktemp("expired")
    (folder / "index.txt").touch()
    (folder / "serial").write_text("01")
    (folder / "ca.cnf").write_text(
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n"
        "x509_extensions=e\n[p]\ncommonName=supplied\n[e]\nsubjectAltName=DNS:localhost\n"
    )
    new = ["openssl", "req", "-new", "-key", str(certificate[1]), "-subj", "/CN=localhost", "-out", "request.pem"]
    sign = ["openssl", "ca", "-batch", "-config", "ca.cnf", "-selfsign", "-keyfile", str(certificate[1])]
    dates = ["-startdate", "20200101000000Z", "-enddate", "20210101000000Z"]
    for command in (new, [*sign, "-in", "request.pem", *dates, "-out", "cert.pem", "-notext"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", certificate[1]


def pin(certificate: Path) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).hexdigest()


def failure(port, sink=None, asked=None, **options):
    """The error of a transfer that fails."""
    with connected(port, **options) as peer:
        transfer = peer.prefill(asked or request(), sink or Sink(Pieces()), SECONDS)
        assert transfer.wait(SECONDS)
        assert transfer.error is not None
        return transfer.error


def test_a_certificate_is_trusted_by_its_ca_or_by_its_pin(certificate):
    pieces = Pieces(n_pieces=2, n_blocks=10, page_bytes=30_000)
    colons = ":".join(pin(certificate[0])[at : at + 2] for at in range(0, 64, 2)).upper()
    trusts = [Trust(ca=certificate[0]), Trust(pins=(pin(certificate[0]),)), Trust(pins=("0" * 64, colons))]
    with serving(pieces.send, listen=ListenOptions("localhost", 0, *certificate)) as server:
        for trust in trusts:
            with connected(server.port, url=f"earthshine://localhost:{server.port}", trust=trust) as peer:
                sink = Sink(pieces)
                peer.prefill(request(), sink, SECONDS).result()
                sink.require_sound()


def test_a_pin_needs_no_matching_name_but_a_ca_does(certificate):
    with serving(Pieces().send, listen=ListenOptions("127.0.0.1", 0, *certificate)) as server:
        url = f"earthshine://127.0.0.1:{server.port}"
        with connected(server.port, url=url, trust=Trust(pins=(pin(certificate[0]),))) as peer:
            peer.prefill(request(), Sink(Pieces()), SECONDS).result()
        error = failure(server.port, url=url, trust=Trust(ca=certificate[0]))
        assert error.reason is Reason.CERTIFICATE


@pytest.mark.parametrize("trust", ["another pin", "the system's CAs"])
def test_a_certificate_that_is_not_trusted_ends_the_transfer(certificate, trust):
    given = Trust(pins=("ab" * 32,)) if trust == "another pin" else Trust()
    with serving(Pieces().send, listen=ListenOptions("localhost", 0, *certificate)) as server:
        error = failure(server.port, url=f"earthshine://localhost:{server.port}", trust=given)
        assert error.reason is Reason.CERTIFICATE
        assert "not trusted" in str(error)
        if given.pins:
            assert pin(certificate[0]) in str(error)


@pytest.mark.parametrize("pinned", [False, True])
def test_an_expired_certificate_is_refused_even_if_pinned(expired, pinned):
    trust = Trust(pins=(pin(expired[0]),)) if pinned else Trust(ca=expired[0])
    with serving(Pieces().send, listen=ListenOptions("localhost", 0, *expired)) as server:
        error = failure(server.port, url=f"earthshine://localhost:{server.port}", trust=trust)
        assert error.reason is Reason.CERTIFICATE
        assert "2021" in str(error) if pinned else "expired" in str(error)


def test_one_end_with_tls_and_one_without_fail_with_a_reason(certificate):
    with serving(Pieces().send) as server:
        error = failure(server.port, url=f"earthshine://localhost:{server.port}", trust=Trust(ca=certificate[0]))
        assert error.reason is Reason.UNREACHABLE
    with serving(Pieces().send, listen=ListenOptions("localhost", 0, *certificate)) as server:
        error = failure(server.port, url=f"earthshine+plain://localhost:{server.port}")
        assert error.reason in (Reason.UNREACHABLE, Reason.DAMAGED)


def test_older_tls_is_refused(certificate):
    with serving(Pieces().send, listen=ListenOptions("localhost", 0, *certificate)) as server:
        context = ssl.create_default_context(cafile=str(certificate[0]))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with socket.create_connection(("localhost", server.port)) as sock, pytest.raises(ssl.SSLError):
            context.wrap_socket(sock, server_hostname="localhost")


@pytest.mark.parametrize("text", ["", "ab", "g" * 64, "a" * 63, "a" * 66])
def test_a_pin_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="SHA-256"):
        Trust(pins=(text,))


def test_a_file_of_cas_that_is_none_is_refused(tmp_path):
    for name in ("absent", "text"):
        (tmp_path / "text").write_text("not a certificate")
        with pytest.raises(UsageError, match="PEM"):
            Trust(ca=tmp_path / name)


def access(tmp_path, *tokens: bytes) -> Access:
    file = tmp_path / "tokens"
    file.write_bytes(b"\n".join(tokens))
    file.chmod(0o600)
    return make_access("127.0.0.1", file)


def test_only_the_right_token_connects(tmp_path):
    pieces = Pieces()
    with serving(pieces.send, access=access(tmp_path, b"another-token-of-more", TOKEN)) as server:
        with connected(server.port, token=TOKEN) as peer:
            peer.prefill(request(), Sink(pieces), SECONDS).result()
        for token in (b"", b"a-token-of-twenty-four-x", b"\xff\x00" * 20, TOKEN[:-1]):
            error = failure(server.port, token=token)
            assert error.reason is Reason.TOKEN, token
            assert "twenty" not in str(error)
        eventually(lambda: server.figures["connections"] == 0)


def test_a_session_is_not_joined_with_another_token(tmp_path):
    other = b"another-token-of-more"
    with (
        serving(Pieces().send, access=access(tmp_path, other, TOKEN)) as server,
        greeted(server.port, Hello(bytes(16), 1, TOKEN)) as (_, first),
        greeted(server.port, Hello(bytes(16), 2, other)) as (_, second),
    ):
        assert isinstance(first, Welcome)
        assert second.reason is Reason.TOKEN


@contextlib.contextmanager
def greeted(port, hello):
    """A connection of our own, and what the server answers."""
    sock = socket.create_connection(("127.0.0.1", port))
    link = Link(sock, "the server")
    try:
        link.send(hello.frame())
        yield link, link.receive()
    finally:
        link.close()


def test_bytes_that_are_replayed_open_nothing_in_a_living_session():
    calls = []

    def handler(asked, out):
        calls.append(asked.request_id)
        out.end()

    with serving(handler) as server:
        hello = Hello(os.urandom(16), 1, b"")
        with greeted(server.port, hello) as (link, answer):
            assert isinstance(answer, Welcome)
            with greeted(server.port, hello) as (_, again):
                assert again.reason is Reason.PROTOCOL
                assert "made before" in str(again.text)
            link.send(Request(1, 1000, 60_000, request()).frame())
            eventually(lambda: calls == ["r1"] and server.figures["requests"] == 1)
            link.send(Request(1, 1000, 60_000, request()).frame())  # idempotent while it runs
            found = [type(link.receive()).__name__ for _ in range(3)]
            assert sorted(found) == ["End", "Plain", "Plain"]
        with greeted(server.port, hello) as (_, again):
            assert again.reason is Reason.PROTOCOL
        assert calls == ["r1"]


def test_a_handle_opens_its_cache_once():
    pieces, ids = Pieces(), []

    def handler(asked, out):
        ids.append(out.handle_id)
        pieces.send(asked, out)

    with serving(handler) as server:
        handle = server.handles.issue(request())
        with connected(server.port) as peer:
            sink = Sink(pieces)
            peer.prefill(request(handle=handle.token), sink, SECONDS).result()
            sink.require_sound()
            assert ids == [handle.id]
        error = failure(server.port, asked=request(handle=handle.token))
        assert error.reason is Reason.HANDLE
        assert "used" in str(error)
        assert len(ids) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"request_id": "r2"},
        {"tenant": "other"},
        {"fingerprint": "model-2"},
        {"n_tokens": 301},
        {"token_ids": [9, *range(1, 300)]},
    ],
)
def test_a_handle_is_bound_to_its_request(changes):
    issuer = Handles()
    handle = issuer.issue(request())
    with pytest.raises(WireError, match="forged") as raised:
        issuer.redeem(request(**changes, handle=handle.token))
    assert raised.value.reason is Reason.HANDLE
    assert issuer.redeem(request(handle=handle.token)) == handle.id  # a wrong attempt does not use it up


def test_a_handle_with_any_byte_changed_is_forged():
    issuer = Handles()
    handle = issuer.issue(request())
    for at in range(len(handle.token)):
        forged = bytearray(handle.token)
        forged[at] ^= 1
        with pytest.raises(WireError, match="forged"):
            issuer.redeem(request(handle=bytes(forged)))
    for token in (handle.token[:-1], handle.token + b"x", b"x"):
        with pytest.raises(WireError, match="not one of"):
            issuer.redeem(request(handle=token))
    with pytest.raises(WireError, match="another process"):
        Handles().redeem(request(handle=handle.token))


def test_a_handle_expires_by_the_issuers_own_steady_clock(monkeypatch):
    """An hour's error of either clock of the day changes nothing: no such clock is read."""
    now = [1000.0]
    monkeypatch.setattr(handles, "monotonic", lambda: now[0])
    monkeypatch.setattr("time.time", lambda: 0.0)
    issuer = Handles()
    kept, late = issuer.issue(request(), 60), issuer.issue(request("r2"), 60)
    now[0] += 59
    assert issuer.redeem(request(handle=kept.token)) == kept.id
    now[0] += 2
    with pytest.raises(WireError, match="expired"):
        issuer.redeem(request("r2", handle=late.token))


def test_a_withdrawn_handle_and_too_many_handles_are_refused(monkeypatch):
    monkeypatch.setattr(handles, "_MOST_OPEN", 2)
    issuer = Handles()
    first, _ = issuer.issue(request()), issuer.issue(request("r2"))
    with pytest.raises(OverloadError):
        issuer.issue(request("r3"))
    issuer.withdraw(first.id)
    issuer.issue(request("r3"))
    with pytest.raises(WireError, match="withdrawn"):
        issuer.redeem(request(handle=first.token))
    for seconds in (0, -1, 1e9, float("nan")):
        with pytest.raises(UsageError):
            issuer.issue(request(), seconds)


def test_a_handle_that_two_present_at_once_opens_for_one():
    issuer = Handles()
    for _ in range(50):
        handle, won = issuer.issue(request()), []

        def redeem(token=handle.token, won=won):
            with contextlib.suppress(WireError):
                won.append(issuer.redeem(request(handle=token)))

        threads = [threading.Thread(target=redeem) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1


def test_resuming_does_not_count_as_a_second_use_of_a_handle():
    from .relay import Relay
    from .test_wire_faults import Gate

    pieces = Pieces(n_pieces=1, n_blocks=30)
    with serving(pieces.send) as server, Relay(server.port) as relay, connected(relay.port) as peer:
        handle = server.handles.issue(request())
        sink = Gate(pieces, 5, relay.cut)
        peer.prefill(request(handle=handle.token), sink, SECONDS).result()
        sink.require_sound()


def test_a_head_is_read_as_it_is_documented():
    """The layout is a promise to other versions: docs/wire.md."""
    raw = Hello(bytes(range(16)), 7, b"tok").frame()
    assert (raw[0], raw[1], int.from_bytes(raw[4:8], "little")) == (1, 1, len(raw) - HEAD.size)
    assert raw[HEAD.size :] == b"ESHWIRE\x1a" + bytes(range(16)) + b"\x07\0\0\0" + b"\x03\0" + b"tok"
