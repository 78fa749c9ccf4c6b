"""Access control without a server: key files, hosts, origins, and the comparison of keys."""

import hashlib
import os

import pytest

from earthshine.errors import UsageError
from earthshine.net.access import Access, Unauthorized, host_name, is_loopback, make_access, read_keys

KEY = "k" * 32


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("http://x/", "http://x"),
        ("HTTPS://App.Example:443", "https://app.example"),
        ("http://[::1]:3000/", "http://[::1]:3000"),
        ("tauri://localhost", "tauri://localhost"),
        ("*", "*"),
    ],
)
def test_origin_is_normalised_as_browsers_send_it(given, origin):
    assert make_access("127.0.0.1", None, (), (given,)).origins == (origin,)


@pytest.mark.parametrize(
    "given", ["", "app.example", "http://", "http://x/page", "http://u@x", "http://x?y", "http://x:z"]
)
def test_invalid_origin_is_refused(given):
    with pytest.raises(UsageError, match="is not an origin; give scheme, host and port"):
        make_access("127.0.0.1", None, (), (given,))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
def test_listening_for_other_machines_needs_keys(host, key_file):
    with pytest.raises(UsageError, match="--api-keys"):
        make_access(host)
    assert make_access(host, key_file).keys


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_needs_no_keys(host):
    assert is_loopback(host)
    assert make_access(host).keys == ()


def test_bound_address_is_an_allowed_host():
    assert host_name("[::1]:8000") in make_access("::1").hosts
    assert "127.5.5.5" in make_access("127.5.5.5").hosts


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_key_file_readable_by_others_is_refused(tmp_path, mode):
    path = tmp_path / "keys"
    path.write_text(KEY)
    path.chmod(mode)
    with pytest.raises(UsageError, match=f"chmod 600 {path}"):
        read_keys(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "has no key"),
        (b"# nothing\n", "has no key"),
        (b"short\n", "Key 1"),
        (KEY.encode() + b"\nwith a space in between\n", "Key 2"),
        (b"\xff" * 32, "Key 1"),
        (b"k" * 2000, "Key 1"),
        (b"#" * ((1 << 20) + 1), "bytes"),
    ],
)
def test_key_file_without_valid_keys_is_refused(tmp_path, text, message):
    path = tmp_path / "keys"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(UsageError, match=message):
        read_keys(path)


def test_key_path_that_is_not_a_regular_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match="API keys"):
            read_keys(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="API keys"):
        read_keys(tmp_path / "pipe")


def test_every_key_is_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append(a) or a == b)
    digests = tuple(hashlib.sha256(name.encode()).digest() for name in ("a", "b", "c"))
    assert Access(digests).user({"x-api-key": "a"}) == digests[0].hex()
    assert compared == list(digests)


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "b"}, {"authorization": "a"}, {"authorization": "Basic a"}])
def test_missing_and_wrong_keys_get_the_same_message(headers):
    with pytest.raises(Unauthorized, match=r"Authorization: Bearer KEY, or x-api-key: KEY\.$"):
        Access((hashlib.sha256(b"a").digest(),)).user(headers)
