"""`earthshine serve` as a process, its socket, its certificate, and signals."""

import json
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from earthshine.hub import GLEAM
from earthshine.net.listen import ListenOptions, tls_context

from .process import ServerProcess, serve_process
from .serving import HANG_SECONDS, FakeEngine, Served_, received, serving, until

ROOT = Path(__file__).resolve().parents[2]
FAKE = """
import sys
sys.path.insert(0, {root!r})
from earthshine.net.access import make_access
from earthshine.server.api import Served
from earthshine.server.http.app import make_app
from earthshine.server.http.endpoints import Lifetime
from earthshine.net.listen import ListenOptions, bind
from earthshine.server.http.run import Service
from tests.server.serving import APIS, FakeEngine, FakeGenerator
lifetime, engine, bound = Lifetime(), FakeEngine(), bind(ListenOptions(port=0))
app = make_app(
    FakeGenerator(), engine, Served(("tiny",), 0, 9, False, False, str), APIS, make_access("127.0.0.1"), None, lifetime
)
service = Service(app, engine, lifetime, {drain}, ready=lambda: print(bound.getsockname()[1], flush=True))
service.run(bound)
print("closed", engine.closed)
"""


def test_a_served_model_finishes_a_running_reply_after_a_signal_and_exits(tmp_path):
    options = ["--name", "mine", "--name", "yours", "--drain-seconds", str(HANG_SECONDS)]
    with serve_process(subprocess.Popen, tmp_path / "log", *options) as server:
        url = server.url
        assert f"OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=none\n" in server.greeting
        assert "Claude Code needs a context of at least 32768 tokens: this model has 4096 at most\n" in server.greeting
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 400, "ignore_eos": True}
        lines = []
        with httpx.stream(
            "POST", f"{url}/v1/chat/completions", json=body | {"stream": True}, timeout=HANG_SECONDS
        ) as answer:
            for line in answer.iter_lines():
                if not lines:
                    server.process.send_signal(signal.SIGTERM)
                lines.append(line)
        assert "data: [DONE]" in lines
        assert server.process.wait(HANG_SECONDS) == 0
        log = server.log.read_text()
    ended = r"POST /v1/chat/completions  200 length  11 tokens \(0 cached\) read in [\d.]+ s  400 generated in [\d.]+ s"
    assert re.search(ended, log)
    assert "hello" not in log
    assert "Traceback" not in log


def test_the_log_of_a_served_model_is_json_line_by_line(forker, tmp_path):
    with serve_process(forker.popen, tmp_path / "log", "--log-json") as server:
        ask = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
        for body in (ask, ask | {"model": 'x\n{"event": 1}\u2028'}):
            httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=HANG_SECONDS)
        server.stop()
        done, refused = map(json.loads, server.log.read_text().splitlines())
    assert (done["event"], done["status"], done["reason"], done["model"]) == ("request", 200, "length", "gleam")
    assert (done["prompt_tokens"], done["completion_tokens"]) == (11, 3)
    assert done["seconds"] >= done["queue_seconds"] + done["prefill_seconds"] + done["decode_seconds"] - 0.01
    assert (refused["status"], refused["reason"], refused["param"]) == (404, "not_found", "model")


@pytest.fixture
def serve_template(forker, tmp_path):
    """Serves gleam with another chat template, or without one."""

    def served(template: str | None) -> AbstractContextManager[ServerProcess]:
        folder = tmp_path / "model"
        shutil.copytree(GLEAM, folder, ignore=shutil.ignore_patterns("*.jinja", "__*"))
        config = folder / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
        return serve_process(forker.popen, tmp_path / "log", str(folder))

    return served


def test_a_base_model_completes_texts_and_refuses_messages(serve_template):
    with serve_template(None) as server:
        assert "not for Claude Code, which calls tools: the model has no chat template\n" in server.greeting
        url = f"{server.url}/v1"
        done = httpx.post(f"{url}/completions", json={"prompt": "tar xzf", "max_tokens": 4}, timeout=HANG_SECONDS)
        assert done.status_code == 200
        refused = httpx.post(f"{url}/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
        assert refused.status_code == 400
        assert "no chat template" in refused.json()["error"]["message"]


def test_a_model_with_a_long_context_gets_claude_codes_settings(forker, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(GLEAM, folder, ignore=shutil.ignore_patterns("__*"))
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    text["max_position_embeddings"] = 32 * text["rope_scaling"]["original_max_position_embeddings"]
    text["rope_scaling"]["factor"] = 32.0
    (folder / "config.json").write_text(json.dumps(config))
    options = [str(folder), "--name", "org/mine", "--name", "mine", "--batch", "1"]
    with serve_process(forker.popen, tmp_path / "log", *options, "--context", "32768") as server:
        assert (
            f"\nexport ANTHROPIC_BASE_URL={server.url} ANTHROPIC_AUTH_TOKEN=none ANTHROPIC_MODEL=mine "
            in server.greeting
        )
        assert " CLAUDE_CODE_MAX_CONTEXT_TOKENS=32768 " in server.greeting
        body = {"model": "mine", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
        assert httpx.post(f"{server.url}/v1/messages", json=body, timeout=HANG_SECONDS).status_code == 200


_CLOSES_THOUGHTS = """{%- for message in messages %}{{ message.content }}{% endfor %}<|im_end|>
{%- if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"""


def test_thinking_is_turned_off_where_the_template_only_closes_thoughts(serve_template):
    """As Qwen3's does, which leaves it to the model to open one."""
    body = {"model": "model", "messages": [{"role": "user", "content": "list all files"}], "max_tokens": 1}
    with serve_template(_CLOSES_THOUGHTS) as server:

        def prompt_tokens(path, name, **fields):
            answer = httpx.post(f"{server.url}/v1/{path}", json=body | fields, timeout=HANG_SECONDS).json()
            return answer["usage"][name]

        n = prompt_tokens("chat/completions", "prompt_tokens")
        assert prompt_tokens("chat/completions", "prompt_tokens", enable_thinking=True) == n
        for off in (
            {"enable_thinking": False},
            {"chat_template_kwargs": {"enable_thinking": False}},
            {"thinking": {"type": "disabled"}},
            {"reasoning_effort": "none"},
        ):
            assert prompt_tokens("chat/completions", "prompt_tokens", **off) == n + 2, off
        assert prompt_tokens("messages", "input_tokens") == n
        assert prompt_tokens("messages", "input_tokens", thinking={"type": "disabled"}) == n + 2


@pytest.fixture
def fake_process(forker):
    """Starts a server of fakes in a process; its port."""
    started = []

    def start(drain):
        process = forker.popen(
            [sys.executable, "-c", FAKE.format(root=str(ROOT), drain=drain)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process, Served_(int(process.stdout.readline()), None, FakeEngine(), None, None, [], threading.Thread())

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def _refuses(server):
    try:
        server.connect().close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # was waiting to be accepted when the socket closed
        return False
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains_and_the_second_ends_at_once(fake_process, number):
    process, server = fake_process(HANG_SECONDS)
    held = server.post({"prompt": "a hold", "stream": True})
    assert b"200 OK" in held.recv(4096)
    process.send_signal(number)
    until(lambda: _refuses(server))
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(HANG_SECONDS) == 128 + number
    received(held)
    held.close()


def test_replies_that_outlast_the_drain_end_with_an_error_and_the_exit_is_clean(fake_process):
    process, server = fake_process(0.2)
    held = server.post({"prompt": "a hold", "stream": True})
    assert b"200 OK" in held.recv(4096)
    process.send_signal(signal.SIGTERM)
    assert b"The server was shut down before the reply ended." in received(held)
    assert process.wait(HANG_SECONDS) == 0
    assert process.stdout.read() == "closed True\n"
    held.close()


def test_tls_serves_clients_that_trust_the_certificate(certificate):
    context = tls_context(ListenOptions(tls_cert=certificate[0], tls_key=certificate[1]))
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    client = ssl.create_default_context(cafile=str(certificate[0]))
    with serving(tls=context) as server:
        url = f"https://localhost:{server.port}/v1/echo"
        assert httpx.post(url, json={"prompt": "a"}, verify=client).json() == {"text": "a"}
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.post(url, json={"prompt": "a"})
        plain = server.connect()
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" not in received(plain)
