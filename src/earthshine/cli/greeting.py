"""What `earthshine serve` prints once it listens: its address, settings to paste for clients, and what they must know.

A server that other machines can reach is greeted with an address that these can use.
"""

from pathlib import Path

from earthshine.cli.words import SERVE_BATCH
from earthshine.net.access import is_loopback
from earthshine.net.listen import ListenOptions, outside_address
from earthshine.plan import Plan, PlanArgs
from earthshine.units import format_bytes


def greeting(
    plan: Plan, name: str, port: int, listen: ListenOptions, given: Plan | PlanArgs, api_keys: Path | None
) -> str:
    """The text for a server of the model `name` on `port`; `plan`: how the model was loaded, which `given` asked."""
    address, memory = address_of(listen, port), plan.memory
    key = "YOUR-KEY" if api_keys else "none"
    return (
        f"{name} is served at {address}: {memory.context_tokens} tokens of context, up to {_requests(memory.batch)} "
        f"at once, at most {format_bytes(memory.budget_bytes)} of memory.\n{_reach(listen, api_keys, port)}"
        f"{_one_at_a_time(given, memory.batch)}\n"
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


def _reach(listen: ListenOptions, api_keys: Path | None, port: int) -> str:
    """Who can use the server, and with what key."""
    here = ""
    if outside_address(listen.host) is not None:
        here = f" On this machine it is also {_url(listen, 'localhost', port)}."
    if api_keys:
        return f"Requests need an API key: one of {api_keys}, in place of YOUR-KEY below.{here}\n"
    assert is_loopback(listen.host)  # others need keys
    return "Programs on this machine can use it without an API key; --host and --api-keys open it to others.\n"


def _one_at_a_time(given: Plan | PlanArgs, batch: int) -> str:
    """What a plan lacks that was made for one sequence, as `earthshine plan` does without --batch."""
    if not isinstance(given, Plan) or batch > 1:
        return ""
    return (
        f"The plan has --batch 1, so other requests wait while one is computed. For up to {SERVE_BATCH} at once, make "
        f"it again: earthshine plan MODEL --batch {SERVE_BATCH} --save FILE\n"
    )


def _requests(batch: int) -> str:
    return f"{batch} request{'s' * (batch > 1)}"


def _models(name: str) -> str:
    """Claude Code's variables for models: it uses other sizes than the main model for sub-agents and titles."""
    sizes = (f"DEFAULT_{size}_MODEL" for size in ("HAIKU", "SONNET", "OPUS"))
    return " ".join(f"ANTHROPIC_{variable}={name}" for variable in ("MODEL", *sizes))
