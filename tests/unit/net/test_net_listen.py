"""Binding a socket and loading TLS files: what is refused, and what the error says."""

import subprocess

import pytest

from earthshine.errors import UsageError
from earthshine.net.listen import ListenOptions, bind, tls_context


def test_port_in_use_is_named_in_the_error():
    with bind(ListenOptions(port=0)) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(UsageError, match=rf"Port {port} of 127.0.0.1 can't be used: Address already in use"):
            bind(ListenOptions(port=port))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ListenOptions(port=-1), "Port -1 does not exist"),
        (ListenOptions(port=65536), "Port 65536 does not exist"),
        (ListenOptions("no such host"), "--host no such host is not an address"),
        (ListenOptions("x" * 300), "is not an address of this machine"),
        (ListenOptions("198.51.100.1", 0), "can't be used"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        bind(options)


def test_tls_files_that_are_not_a_pair_are_refused(certificate, tmp_path):
    cert, key = certificate
    (tmp_path / "empty.pem").touch()
    for options, message in (
        (ListenOptions(tls_cert=cert), "give --tls-cert and --tls-key"),
        (ListenOptions(tls_key=key), "give --tls-cert and --tls-key"),
        (ListenOptions(tls_cert=key, tls_key=cert), "are not a PEM certificate and its key"),
        (ListenOptions(tls_cert=cert, tls_key=tmp_path / "empty.pem"), "are not a PEM certificate"),
        (ListenOptions(tls_cert=tmp_path / "absent", tls_key=key), "can't be read: No such file"),
    ):
        with pytest.raises(UsageError, match=message):
            tls_context(options)
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "ec", "-aes128", "-passout", "pass:secret", "-in", str(key), "-out", str(locked)],
        check=True,
        capture_output=True,
    )
    with pytest.raises(UsageError, match="without a password"):
        tls_context(ListenOptions(tls_cert=cert, tls_key=locked))
