"""Access control over HTTP: API keys on every route, the Host, pages of other origins, and the file of keys."""

import hashlib

import httpx
import pytest
from starlette.routing import Route

from earthshine.net.access import make_access
from earthshine.server.http.page_files import page_files

from .serving import received, serving

KEY, OTHER = "k" * 32, "o" * 32
OPEN = {"/health", "/ping", *page_files()}


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# for tests\n{OTHER}  # the other one\n\n{KEY}\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def server(key_file):
    with serving(access=make_access("127.0.0.1", key_file)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url) as opened:
        yield opened


def _routes(server):
    for route in server.service.app.routes:
        if isinstance(route, Route):
            yield from ((route.path.replace("{model_id:path}", "tiny"), method) for method in route.methods)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"x-api-key": "wrong"},
        {"x-api-key": ""},
        {"authorization": b"Bearer \xff"},
    ],
)
def test_every_route_but_the_open_ones_asks_for_a_key(server, client, headers):
    routes = {*_routes(server), ("/nowhere", "GET"), ("/v1/models", "DELETE"), ("//v1/models", "GET")}
    assert ("/v1/echo", "POST") in routes
    assert ("/openapi.json", "GET") in routes
    for path, method in routes:
        status = client.request(method, server.url + path, headers=headers).status_code
        assert status == (200 if path in OPEN else 401), path


def test_the_refusal_has_the_shape_of_the_api_and_names_both_ways(client):
    answer = client.post("/v1/messages", json={"prompt": "a"})
    assert answer.json()["type"] == "error"
    assert "Authorization: Bearer" in answer.json()["message"]
    assert "x-api-key" in answer.json()["message"]
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("headers", [{"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}])
def test_the_digest_of_the_key_is_the_user(server, client, headers):
    assert client.post("/v1/echo", json={"prompt": "a"}, headers=headers).status_code == 200
    assert server.generator.users[-1] == hashlib.sha256(KEY.encode()).hexdigest()
    assert client.post("/v1/echo", json={"prompt": "a"}, headers={"x-api-key": OTHER}).status_code == 200
    assert server.generator.users[-1] != server.generator.users[-2]
    assert not [line for line in server.lines if KEY in line]


def test_a_body_is_not_read_before_the_key_is_seen(server):
    connection = server.connect()
    connection.sendall(b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
    assert connection.recv(64).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:80", 200),
        ("mine.test", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("localhost@evil.example", 400),
    ],
)
def test_the_host_must_be_one_of_the_servers_names(host, status):
    with serving(access=make_access("127.0.0.1", None, ("mine.test",))) as server:
        answer = httpx.get(f"{server.url}/v1/models", headers={"host": host})
        assert answer.status_code == status
        assert status == 200 or "--allow-host" in answer.text
        assert httpx.get(f"{server.url}/health", headers={"host": host}).status_code == status


@pytest.mark.parametrize("host", [b"localhost/health", b"localhost/health?", b"x@localhost/ping#", b"/health", b"[::1"])
def test_no_host_opens_a_path(server, host):
    connection = server.connect()
    connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")
    assert received(connection).startswith((b"HTTP/1.1 400", b"HTTP/1.1 401"))


def test_pages_of_other_origins_may_not_ask():
    with serving() as server:
        own, other = {"origin": server.url}, {"origin": "https://evil.example"}
        assert httpx.post(f"{server.url}/v1/echo", json={"prompt": "a"}, headers=own).status_code == 200
        refused = httpx.post(f"{server.url}/v1/echo", json={"prompt": "a"}, headers=other)
        assert (refused.status_code, "--allow-origin" in refused.text) == (400, True)
        assert httpx.get(f"{server.url}/v1/models", headers={"origin": "null"}).status_code == 400
        preflight = httpx.options(f"{server.url}/v1/echo", headers=own | {"access-control-request-method": "POST"})
        answers = (refused, preflight, httpx.get(f"{server.url}/v1/models", headers=own))
        assert not [name for answer in answers for name in answer.headers if name.startswith("access-control")]


def test_an_allowed_origin_gets_its_headers(key_file):
    access = make_access("127.0.0.1", key_file, (), ("https://app.example",))
    with serving(access=access) as server:
        origin = {"origin": "https://app.example"}
        asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        preflight = httpx.options(f"{server.url}/v1/echo", headers=origin | asks)
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        answer = httpx.get(f"{server.url}/v1/models", headers=origin | {"x-api-key": KEY})
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert httpx.get(f"{server.url}/v1/models", headers={"origin": "https://evil.example"}).status_code == 400


@pytest.mark.parametrize("network", ["private", "local"])
def test_pages_of_allowed_origins_may_ask_from_the_internet(network):
    asks = {"access-control-request-method": "POST", f"access-control-request-{network}-network": "true"}
    allowed = f"access-control-allow-{network}-network"
    with serving(access=make_access("127.0.0.1", None, (), ("https://app.example/",))) as server:
        url = f"{server.url}/v1/echo"
        answer = httpx.options(url, headers=asks | {"origin": "https://app.example"})
        assert (answer.status_code, answer.headers[allowed]) == (200, "true")
        refused = httpx.options(url, headers=asks | {"origin": "https://evil.example"})
        assert refused.status_code == 400


def test_the_page_may_run_its_own_scripts_only(client):
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'self'")
    assert policy.endswith("require-trusted-types-for 'script'; trusted-types 'none'")
    assert not [word for word in ("unsafe", "http", "data:", "blob:", "*", "nonce") if word in policy]
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert client.get("/main.js").headers["content-type"] == "text/javascript; charset=utf-8"
    assert client.get("/vendor/katex/fonts/KaTeX_Main-Regular.woff2").headers["content-type"] == "font/woff2"
    assert client.get("/page/../../access.py").status_code == 401
    assert client.get("/vendor/manifest.json").status_code == 401


def test_a_file_of_the_page_is_sent_again_only_when_it_has_changed(client):
    first = client.get("/main.js")
    again = client.get("/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    assert client.get("/main.js", headers={"if-none-match": '"another"'}).content == first.content
