"""The loopback measurement: its figures, who may connect, and that it ends whatever happens."""

import socket
import threading

import pytest

from earthshine.machine import network


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_ROUND_BYTES", 2 << 20)
    monkeypatch.setattr(network, "_QUESTIONS", 5)
    monkeypatch.setattr(network, "_TIMEOUT_SECONDS", 2.0)


def test_it_counts_what_was_sent_and_asked() -> None:
    found = network.measure_loopback(repeats=3)
    assert found is not None
    assert (len(found.rates), len(found.round_trips)) == (3, 5)
    medians = found.medians()
    assert min(found.rates) <= medians.bytes_per_second <= max(found.rates)
    assert 0 < medians.round_trip_seconds < 1
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("(_answer)")]


def test_it_listens_to_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    create = socket.create_server

    def seen(address: tuple[str, int], **options: object) -> socket.socket:
        asked.append(address)
        return create(address, **options)

    monkeypatch.setattr(network.socket, "create_server", seen)
    assert network.measure_loopback(repeats=1) is not None
    assert asked == [("127.0.0.1", 0)]


@pytest.mark.parametrize("name", ["create_server", "create_connection"])
def test_system_that_permits_no_connection_has_no_figure(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(network.socket, name, refuse)
    monkeypatch.setattr(network, "_TIMEOUT_SECONDS", 0.1)
    assert network.measure_loopback() is None


def test_a_stranger_without_the_token_is_dropped() -> None:
    with socket.create_server((network.HOST, 0)) as listener:
        listener.settimeout(300.0)
        thread = threading.Thread(target=network._answer, args=(listener, b"x" * 32, 1))
        thread.start()
        with socket.create_connection(listener.getsockname(), 300.0) as stranger:
            stranger.sendall(b"y" * 32)
            assert stranger.recv(1) == b""
        thread.join(300.0)
        assert not thread.is_alive()


def test_answer_that_ends_early_gives_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang_up(listener: socket.socket, *_: object) -> None:
        listener.accept()[0].close()

    monkeypatch.setattr(network, "_answer", hang_up)
    assert network.measure_loopback() is None
