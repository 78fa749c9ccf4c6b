"""What the router reads of a request: the paths that it forwards, fields that it refuses, and the prompt's text.

The text only serves to compare prompts and to estimate their tokens; it is forgotten once its blocks are known. It is
made of the fields that a chat template renders, in the order in which templates do, so that what two prompts have in
common at their beginning is a beginning of both texts.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from earthshine.prfaas.router.blocks import blocks_of
from earthshine.prfaas.router.live import Prompt
from earthshine.server.refusals import Refused
from earthshine.untrusted import parse_object, shown

PREFILL_HEADER = "x-earthshine-prefill"  # to a place: whose prefill it borrows, by its own name for it, or "none"
_OWN_HEADERS = "x-earthshine-"
_GENERATES = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}
_POSTS = _GENERATES | {"/v1/messages/count_tokens", "/tokenize", "/detokenize"}
_NAMED = re.compile(
    r"/v1/models(?:/[A-Za-z0-9._:@-]+)*|/v1/responses/[A-Za-z0-9_-]{1,128}(?:/cancel)?|/v1/stream/[A-Za-z0-9._:-]{1,128}"
)
_METHODS = ("GET", "POST", "DELETE")
_PROMPT_FIELDS = ("tools", "functions", "system", "instructions", "messages", "input", "prompt")

# By vLLM and SGLang: addresses of peers, and what names a cache there.
_PEERS = ("kv_transfer_params", "ec_transfer_params", "bootstrap_host", "bootstrap_port", "bootstrap_room",
          "disagg_prefill_dp_rank")  # fmt: skip
_NESTED = ("vllm_xargs", "extra_body", "nvext")  # objects in which servers look for such fields
_HARMLESS: tuple[Any, ...] = (None, "", False, [], {})


def is_forwarded(method: str, path: str) -> bool:
    """Whether requests with this path are for places."""
    return (method == "POST" and path in _POSTS) or (method in _METHODS and _is_named(path))


def _is_named(path: str) -> bool:
    """A path with a name in it, which leads nowhere else at a server that resolves . and .."""
    return _NAMED.fullmatch(path) is not None and not {".", ".."} & set(path.split("/"))


def allowed_methods(path: str) -> str | None:
    """The methods of a path that exists, for the answer to another one."""
    if path in _POSTS:
        return "POST"
    if not _is_named(path):
        return None
    return "GET" if path.startswith("/v1/models") else "GET, POST, DELETE"


def has_body(path: str) -> bool:
    """Whether a POST with this path needs a body."""
    return path in _POSTS


def generates(path: str) -> bool:
    """Whether a request with this path makes a reply."""
    return path in _GENERATES


def require_no_peer_header(headers: Mapping[str, str]) -> None:
    """Raises Refused for a header that only a router may send to a place."""
    found = next((name for name in headers if name.startswith(_OWN_HEADERS)), None)
    if found is not None:
        raise Refused(
            f"The header {shown(found)[1:-1]} is for routers; where a prompt is computed is not a client's choice."
        )


def require_no_peer(body: Mapping[str, Any]) -> None:
    """Raises Refused for a field that names a peer: the operator names them, never a request."""
    nested = ((f"{name}.", body.get(name)) for name in _NESTED)
    for where, held in (("", body), *((where, held) for where, held in nested if isinstance(held, dict))):
        for name in _PEERS:
            if not _harmless(held.get(name)):
                raise Refused(
                    f"{where}{name} names a peer or a cache there; where a prompt is computed is not a client's "
                    "choice, so leave it out.",
                    param=f"{where}{name}",
                )


def _harmless(value: Any) -> bool:
    return any(value is each or (type(value) is type(each) and value == each) for each in _HARMLESS)


def read_prompt(raw: bytes, path: str, tenant: str) -> Prompt:
    """The prompt of a POST's body. `tenant`: whose prefixes it shares. Raises Refused for a body that is not a JSON
    object, and for a field that names a peer."""
    body = parse_object(raw, "The body", Refused)
    require_no_peer(body)
    model = body.get("model")
    model = model if isinstance(model, str) else None
    if path not in _GENERATES:
        return Prompt(model=model)
    found = [body[name] for name in _PROMPT_FIELDS if body.get(name) is not None]
    text = "".join(json.dumps(each, ensure_ascii=False, separators=(",", ":")) for each in found)
    data = text.encode("utf-8", "replace")
    salt = body.get("cache_salt")
    owner = f"{tenant}\0{model}\0{salt if isinstance(salt, str) else ''}".encode("utf-8", "replace")
    beginning = int.from_bytes(hashlib.blake2b(data[:256], digest_size=8).digest(), "little")
    return Prompt(blocks_of(data, owner), len(data), beginning, body.get("stream") is True, model)
