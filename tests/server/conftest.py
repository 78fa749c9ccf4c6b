"""One server with the shipped model on its own socket, for all tests that use it as clients do."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from httpx._transports import default

from earthshine.cli.serve import APIS
from earthshine.engine import Engine, load_model, sampling_defaults
from earthshine.generation.prompts import Prompts
from earthshine.hub import GLEAM
from earthshine.net.access import make_access
from earthshine.net.listen import ListenOptions, bind
from earthshine.plan import PlanArgs
from earthshine.server.api import Served
from earthshine.server.generator import TextGenerator
from earthshine.server.http.app import make_app
from earthshine.server.http.endpoints import Lifetime
from earthshine.server.http.run import Service
from earthshine.text import load_template, load_tokenizer

from .serving import HANG_SECONDS


@pytest.fixture(scope="session", autouse=True)
def _clients_share_certificates() -> Iterator[None]:
    """httpx reads the system's certificates for each client, in 20 ms, also for one that will not speak TLS."""
    made = httpx.create_ssl_context()
    with pytest.MonkeyPatch.context() as patch:
        real = default.create_ssl_context
        patch.setattr(
            default,
            "create_ssl_context",
            lambda verify=True, **more: made if verify is True else real(verify=verify, **more),
        )
        yield


@pytest.fixture(scope="session", autouse=True)
def _clients_have_patience() -> None:
    """httpx gives up after 5 seconds where a test does not say how long: on a busy machine too early."""
    for what in ("connect", "read", "write", "pool"):
        setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, what, HANG_SECONDS)


@dataclass(frozen=True, slots=True)
class LiveServer:
    """`url` has no path; `model` is the name that it serves."""

    url: str
    model: str
    context_tokens: int
    engine: Engine


@pytest.fixture(scope="session")
def live_server() -> Iterator[LiveServer]:
    """gleam behind every API, without keys, until the tests are over."""
    model = load_model(GLEAM, PlanArgs(batch=8))
    tokenizer, template, engine = load_tokenizer(GLEAM), load_template(GLEAM), Engine(model)
    served = Served(
        ("gleam",),
        1_700_000_000,
        engine.context_tokens,
        True,
        template.can_preserve_thinking,
        tokenizer.decode,
        sampling_defaults(GLEAM),
    )
    spec = model.spec
    prompts = Prompts(tokenizer, template, spec.vocab_size, spec.stop_tokens, engine.context_tokens)
    replies = TextGenerator(engine, prompts)
    lifetime, ready, bound = Lifetime(), threading.Event(), bind(ListenOptions(port=0))
    app = make_app(replies, engine, served, APIS, make_access("127.0.0.1"), lifetime=lifetime)
    service = Service(app, engine, lifetime, 5.0, ready=ready.set)
    port = bound.getsockname()[1]
    thread = threading.Thread(target=service.run, args=(bound,), kwargs={"signals": False})
    thread.start()
    assert ready.wait(HANG_SECONDS)
    yield LiveServer(f"http://127.0.0.1:{port}", "gleam", engine.context_tokens, engine)
    service.stop()
    thread.join(HANG_SECONDS)
    replies.close()
    model.close()
    assert not thread.is_alive()
