"""`earthshine serve` and `bench serve`: what is refused before a model is loaded, and what a server is called."""

import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from earthshine.cli.greeting import Server, address_of, greeting
from earthshine.cli.serve import model_names
from earthshine.hub import GLEAM
from earthshine.net import listen
from earthshine.net.listen import ListenOptions
from earthshine.plan import PlanArgs, make_plan
from earthshine.settings import read_settings
from earthshine.spec import load_spec


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text("k" * 32)
    path.chmod(0o644)
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "give --api-keys FILE"),
        (["--api-keys", "KEYS"], "chmod 600"),
        (["--api-keys", "absent"], "can't be opened"),
        (["--tls-cert", "cert.pem"], "give --tls-cert and --tls-key"),
        (["--tls-cert", "absent", "--tls-key", "absent"], "can't be read"),
        (["--port", "70000"], "Port 70000 does not exist"),
        (["--disk-cache", "much"], "is not a size"),
        (["--disk-cache-folder", "somewhere"], "--disk-cache-folder needs --disk-cache with a size"),
        (["--max-stall", "0"], "--max-stall must be between 0.01 and 3600 seconds, not 0.0"),
        (["--max-queue", "0"], "--max-queue must be between 1 and 1048576, not 0"),
        (["--drain-seconds", "nan"], "--drain-seconds must be between 0 and"),
        (["--hang-seconds", "-1"], "--hang-seconds must be between 0 and"),
        (["--name", "a//b", "--port", "0"], "--name must be up to 128 letters, digits and . _ : - /, not 'a//b'"),
        (["--memory", "lots"], "is not a size"),
        (["--plan", "plan.json", "--batch", "2"], "--plan has all options"),
    ],
)
def test_wrong_use_is_named_before_anything_is_loaded(earthshine, keys, arguments, message):
    code, out, err = earthshine("serve", "gleam", *(str(keys) if word == "KEYS" else word for word in arguments))
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("earthshine: ")
    assert "Traceback" not in err


def test_a_batch_of_zero_is_refused(earthshine):
    code, _, err = earthshine("serve", "gleam", "--batch", "0", "--port", "0")
    assert (code, "--batch must be between 1 and 4096 sequences, not 0" in err) == (2, True)


def test_a_port_in_use_is_named_before_the_model_is_looked_for(earthshine):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = earthshine("serve", "/no/such/model", "--port", taken.getsockname()[1])
    assert code == 2
    assert "Address already in use. Choose another port, 0 for any." in err


def test_run_is_chat(earthshine):
    assert earthshine("run", "-p", "hello", "--max-tokens", 2)[0] == 0


def test_bench_serve_without_a_server_says_so(earthshine):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code, out, err = earthshine("bench", "serve", f"http://127.0.0.1:{port}")
    assert (code, out) == (1, "")
    assert err.startswith("earthshine: ")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        (GLEAM, "gleam"),
        (Path("/models/Kimi-K2.6"), "Kimi-K2.6"),
        (Path("/models/a model (2)"), "a-model-2"),
        (Path("/hub/models--moonshotai--Kimi-K2.6/snapshots/0123abc"), "Kimi-K2.6"),
        (Path("/"), "model"),
    ],
)
def test_a_model_has_a_name_that_every_client_can_write(folder, name):
    assert model_names((), folder) == (name,)


def test_given_names_come_in_their_order_once():
    assert model_names(("b", "a", "b"), GLEAM) == ("b", "a")


def test_the_hubs_id_is_a_name():
    assert model_names(("moonshotai/Kimi-K2.6",), GLEAM) == ("moonshotai/Kimi-K2.6",)


@pytest.mark.parametrize(
    ("place", "address"),
    [
        (ListenOptions(), "http://127.0.0.1:9"),
        (ListenOptions("fe80::1"), "http://[fe80::1]:9"),
        (ListenOptions("localhost", tls_cert=Path("a"), tls_key=Path("b")), "https://localhost:9"),
    ],
)
def test_the_address_is_one_to_paste(place, address):
    assert address_of(place, 9) == address


class Network:
    """A socket of a machine whose address on every network is `own`; without one no address elsewhere has a route."""

    def __init__(self, own):
        self._own = own

    def __call__(self, family, kind):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *about):
        return None

    def connect(self, address):
        if self._own is None:
            raise OSError("Network is unreachable")

    def getsockname(self):
        return (self._own, 5)


@pytest.mark.parametrize(
    ("host", "own", "address"),
    [
        ("0.0.0.0", "192.168.7.3", "http://192.168.7.3:9"),
        ("::", "2001:db8::7", "http://[2001:db8::7]:9"),
        ("0.0.0.0", None, "http://tower:9"),
    ],
)
def test_a_server_on_all_addresses_is_greeted_with_one_that_others_can_use(monkeypatch, host, own, address):
    monkeypatch.setattr(listen.socket, "socket", Network(own))
    monkeypatch.setattr(listen.socket, "gethostname", lambda: "tower")
    assert address_of(ListenOptions(host), 9) == address
    text = greeted(listen=ListenOptions(host), api_keys=Path("/etc/keys"))
    assert f"OPENAI_BASE_URL={address}/v1 OPENAI_API_KEY=YOUR-KEY\n" in text
    assert "Requests need an API key: one of /etc/keys, in place of YOUR-KEY below." in text
    assert "On this machine it is also http://localhost:9." in text


def greeted(saved=False, batch=8, context=4096, **options):
    args = PlanArgs(4 << 30, batch=batch)
    plan = make_plan(load_spec(GLEAM), args)
    plan = replace(plan, memory=replace(plan.memory, context_tokens=context))
    known = {"listen": ListenOptions(), "api_keys": None, "names": ("gleam",), "max_context": 4096}
    known |= {"chats": True, "calls_tools": True} | options
    return greeting(Server(port=9, plan=plan, given=plan if saved else args, **known))


def test_claude_code_gets_its_settings_where_its_first_prompt_fits():
    text = greeted(context=32768, max_context=262_144, names=("moonshotai/Kimi-K2.6", "kimi"))
    variables = dict(re.findall(r"(\w+)=(\S+)", text.partition("# for Claude Code\nexport ")[2].partition("\n")[0]))
    sizes = ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("HAIKU", "SONNET", "OPUS")))
    assert {variables.pop(size) for size in sizes} == {"kimi"}, "it takes no name with a slash"
    assert variables == {
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
        "ANTHROPIC_AUTH_TOKEN": "none",
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": "32768",  # otherwise it assumes a million
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_STREAM_IDLE_TIMEOUT_MS": "86400000",  # otherwise it gives up a prompt that takes ten minutes
    }


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ({}, "# Claude Code needs a context of at least 32768 tokens: this model has 4096 at most\n"),
        ({"max_context": 32768}, "at least 32768 tokens: start again with --context 32768\n"),
        ({"max_context": 32768, "saved": True}, "at least 32768 tokens: make the plan again with --context 32768\n"),
        ({"context": 32768, "calls_tools": False}, "calls tools: the chat template declares no tool calls that can"),
        ({"context": 32768, "chats": False, "calls_tools": False}, "calls tools: the model has no chat template\n"),
        ({"context": 32768, "names": ("a/b",)}, "needs a name of the model without a slash: add one with --name\n"),
    ],
)
def test_claude_code_that_can_not_work_gets_a_reason_instead_of_settings(known, reason):
    text = greeted(**known)
    assert reason in text
    assert "ANTHROPIC" not in text
    assert "OPENAI_BASE_URL=" in text


def test_a_model_without_a_chat_template_gets_no_page():
    text = greeted(chats=False, calls_tools=False)
    assert "# for OpenAI's clients, to complete texts: without a chat template" in text
    assert "chat page" not in text


def test_a_server_for_this_machine_says_that_no_key_is_needed():
    text = greeted()
    assert "Programs on this machine can use it without an API key" in text
    assert "YOUR-KEY" not in text
    assert "up to 8 requests at once" in text


def test_a_plan_made_without_batch_says_what_it_lacks():
    assert "make it again: earthshine plan MODEL --batch 8 --save FILE\n" in greeted(saved=True, batch=1)
    assert "up to 1 request at once" in greeted(saved=True, batch=1)
    assert "--batch" not in greeted(saved=True, batch=4)
    assert "--batch" not in greeted(batch=1), "--batch 1 was asked for"


def test_kept_conversations_lie_in_the_cache(monkeypatch):
    assert read_settings({"XDG_CACHE_HOME": "/srv/cache"}).pages == Path("/srv/cache/earthshine/pages")
    monkeypatch.setenv("HOME", "/home/me")
    for text in ("", "relative"):
        assert read_settings({"XDG_CACHE_HOME": text}).pages == Path("/home/me/.cache/earthshine/pages")
