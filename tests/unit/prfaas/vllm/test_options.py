"""The connector's configuration: what it takes, and refusals that name the setting."""

import json
from pathlib import Path

import pytest

from earthshine.errors import UsageError
from earthshine.prfaas.announce import announced
from earthshine.prfaas.curve import Curve
from earthshine.prfaas.profile import Profile, profile_fields
from earthshine.prfaas.vllm.options import ConnectorOptions

LISTEN = "earthshine+plain://127.0.0.1:7101"
PEER = "earthshine+plain://127.0.0.1:7100"


def parsed(**given) -> ConnectorOptions:
    return ConnectorOptions.parse({"model": "m"} | given)


def test_settings_are_read_with_their_types():
    made = parsed(peers=[PEER], min_tokens=64, deadline_seconds=3, peer_ca="/etc/ca.pem")
    assert (made.peers, made.min_tokens, made.deadline_seconds) == ((PEER,), 64, 3)
    assert made.peer_ca == Path("/etc/ca.pem")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"peer": PEER}, "no setting 'peer'.*peers"),
        ({"peers": PEER}, "peers is .*a list of texts"),
        ({"peers": [PEER, 5]}, "peers is .*a list of texts"),
        ({"min_tokens": True}, "min_tokens is true"),
        ({"min_tokens": "9"}, "min_tokens is '9'; a whole number"),
        ({"min_tokens": 0}, "at least 1"),
        ({"deadline_seconds": 0}, "deadline_seconds"),
        ({"model": ""}, '"model"'),
        ({"peers": ["http://a:1"]}, "not the address of a peer"),
        ({"peers": ["earthshine+plain://10.0.0.2:7100"]}, "allow-plain"),
        ({"submit": "http://127.0.0.1:8000"}, '"listen"'),
    ],
)
def test_bad_settings_are_named(given, named):
    with pytest.raises(UsageError, match=named):
        parsed(**given)


@pytest.mark.parametrize(
    ("given", "producer", "consumer", "named"),
    [
        ({"peers": [PEER]}, True, False, "kv_producer needs"),
        ({"listen": LISTEN}, False, True, "kv_consumer needs"),
        ({}, True, True, "listen"),
        ({"listen": LISTEN, "peers": [PEER]}, True, False, "kv_both"),
    ],
)
def test_settings_must_serve_the_role(given, producer, consumer, named):
    with pytest.raises(UsageError, match=named):
        parsed(**given).require_role(producer=producer, consumer=consumer)
    parsed(listen=LISTEN, peers=[PEER]).require_role(producer=True, consumer=True)


def test_listener_that_others_reach_needs_tls_and_tokens(tmp_path):
    exposed = parsed(listen="earthshine://0.0.0.0:7100")
    with pytest.raises(UsageError, match="tls_cert"):
        exposed.listen_options()
    with pytest.raises(UsageError, match="keys"):
        exposed.access()
    with pytest.raises(UsageError, match="in the clear"):
        parsed(listen="earthshine+plain://0.0.0.0:7100")
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef\n")
    keys.chmod(0o600)
    assert parsed(listen="earthshine://0.0.0.0:7100", keys=str(keys)).access().keys


def test_profile_is_announced_or_refused_by_name(tmp_path):
    assert parsed(listen=LISTEN).about() == b""
    measured = Profile(
        "vllm", "Measured.", Curve(((64.0, 0.5), (4096.0, 9.0))), Curve(((1.0, 1.0),)), None, 0, False, 0.0
    )
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile_fields(measured)))
    found = announced(parsed(listen=LISTEN, profile=str(path)).about(), measured)
    assert found.prefill.points == measured.prefill.points
    path.write_text("{}")
    with pytest.raises(UsageError, match=r"profile\.json"):
        parsed(listen=LISTEN, profile=str(path)).about()
