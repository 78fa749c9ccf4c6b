"""What `earthshine serve` prints once it listens: its address, settings to paste for clients, and what they must know.

A server that other machines can reach is greeted with an address that these can use.
"""

from pathlib import Path
from typing import Protocol

from earthshine.net.access import is_loopback
from earthshine.net.listen import ListenOptions, outside_address
from earthshine.plan import Plan, PlanArgs
from earthshine.units import format_bytes

_USUAL_BATCH = 8


class Options(Protocol):
    """The part of the command's options that is used here."""

    @property
    def listen(self) -> ListenOptions: ...

    @property
    def plan(self) -> Plan | PlanArgs: ...

    @property
    def api_keys(self) -> Path | None: ...


def greeting(plan: Plan, name: str, options: Options, port: int) -> str:
    """The text for a server of the model `name` on `port`; `plan`: how the model was loaded."""
    address, memory = address_of(options.listen, port), plan.memory
    key = "YOUR-KEY" if options.api_keys else "none"
    return (
        f"{name} is served at {address}: {memory.context_tokens} tokens of context, up to {_requests(memory.batch)} "
        f"at once, at most {format_bytes(memory.budget_bytes)} of memory.\n{_reach(options, port)}"
        f"{_one_at_a_time(options.plan, memory.batch)}\n"
        "# for OpenAI's clients\n"
        f"export OPENAI_BASE_URL={address}/v1 OPENAI_API_KEY={key}\n\n"
        "# for Claude Code\n"
        f"export ANTHROPIC_BASE_URL={address} ANTHROPIC_AUTH_TOKEN={key} {_models(name)} "
        f"CLAUDE_CODE_MAX_CONTEXT_TOKENS={memory.context_tokens} CLAUDE_CODE_ATTRIBUTION_HEADER=0\n\n"
        f"For a chat page, open {address} in a browser.\n"
        "Ctrl-C ends the server after running requests; a second Ctrl-C ends it at once."
    )


def address_of(listen: ListenOptions, port: int) -> str:
    """The server's address for its clients: other machines where these can reach it, otherwise programs on this one."""
    return _url(listen, outside_address(listen.host) or listen.host, port)


def _url(listen: ListenOptions, host: str, port: int) -> str:
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http{'s' if listen.tls_cert else ''}://{host}:{port}"


def _reach(options: Options, port: int) -> str:
    """Who can use the server, and with what key."""
    listen, here = options.listen, ""
    if outside_address(listen.host) is not None:
        here = f" On this machine it is also {_url(listen, 'localhost', port)}."
    if options.api_keys:
        return f"Requests need an API key: one of {options.api_keys}, in place of YOUR-KEY below.{here}\n"
    assert is_loopback(listen.host)  # others need keys
    return "Programs on this machine can use it without an API key; --host and --api-keys open it to others.\n"


def _one_at_a_time(given: Plan | PlanArgs, batch: int) -> str:
    """What a plan lacks that was made for one sequence, as `earthshine plan` does without --batch."""
    if not isinstance(given, Plan) or batch > 1:
        return ""
    return (
        "The plan has --batch 1, so other requests wait while one is computed. For up to 8 at once, make it again: "
        f"earthshine plan MODEL --batch {_USUAL_BATCH} --save FILE\n"
    )


def _requests(batch: int) -> str:
    return f"{batch} request{'s' * (batch > 1)}"


def _models(name: str) -> str:
    """Claude Code's variables for models: it uses other sizes than the main model for sub-agents and titles."""
    sizes = (f"DEFAULT_{size}_MODEL" for size in ("HAIKU", "SONNET", "OPUS"))
    return " ".join(f"ANTHROPIC_{variable}={name}" for variable in ("MODEL", *sizes))
