"""What `earthshine serve` prints once it listens: its address, and settings to paste for the clients that can use it.

A server that other machines can reach is greeted with an address that these can use.
"""

from dataclasses import dataclass
from pathlib import Path

from earthshine.cli.words import SERVE_BATCH
from earthshine.net.access import is_loopback
from earthshine.net.listen import ListenOptions, outside_address
from earthshine.plan import Plan, PlanArgs
from earthshine.units import format_bytes

# A day. By default it gives up a stream after ten minutes of pings alone, whatever API_TIMEOUT_MS says (2.1.332).
CLAUDE_CODE_WAIT_MS = 86_400_000
CLAUDE_CODE_TOKENS = 32768  # its first prompt had 16,665 to 28,103 (docs/numbers_serving.md); a reply needs some too


@dataclass(frozen=True, slots=True)
class Server:
    """What is served, and where.

    names: of the model, its own first.
    plan: how the model was loaded; `given`: what the command was given, of which the plan may have been made.
    max_context: the model's own limit, in tokens.
    chats: the model has a chat template; `calls_tools`: in a form that can be read.
    """

    names: tuple[str, ...]
    port: int
    listen: ListenOptions
    api_keys: Path | None
    plan: Plan
    given: Plan | PlanArgs
    max_context: int
    chats: bool
    calls_tools: bool

    @property
    def address(self) -> str:
        return address_of(self.listen, self.port)

    @property
    def key(self) -> str:
        return "YOUR-KEY" if self.api_keys else "none"


def greeting(server: Server) -> str:
    """The text for a server that has begun to listen."""
    address, memory = server.address, server.plan.memory
    texts = "" if server.chats else ", to complete texts: without a chat template the model has no conversations"
    page = f"For a chat page, open {address} in a browser.\n" if server.chats else ""
    return (
        f"{server.names[0]} is served at {address}: {memory.context_tokens} tokens of context, up to "
        f"{_requests(memory.batch)} at once, at most {format_bytes(memory.budget_bytes)} of memory.\n"
        f"{_reach(server)}{_one_at_a_time(server.given, memory.batch)}\n"
        f"# for OpenAI's clients{texts}\n"
        f"export OPENAI_BASE_URL={address}/v1 OPENAI_API_KEY={server.key}\n\n"
        f"{_claude_code(server)}\n\n"
        f"{page}Ctrl-C ends the server after running requests; a second Ctrl-C ends it at once."
    )


def _claude_code(server: Server) -> str:
    """The settings for Claude Code, or why it can't be used."""
    context = server.plan.memory.context_tokens
    if not server.calls_tools:
        lacks = (
            "chat template declares no tool calls that can be read" if server.chats else "model has no chat template"
        )
        return f"# not for Claude Code, which calls tools: the {lacks}"
    if context < CLAUDE_CODE_TOKENS:
        return f"# Claude Code needs a context of at least {CLAUDE_CODE_TOKENS} tokens: {_more_context(server)}"
    name = next((each for each in server.names if "/" not in each), None)
    if name is None:
        return "# Claude Code needs a name of the model without a slash: add one with --name"
    return (
        "# for Claude Code\n"
        f"export ANTHROPIC_BASE_URL={server.address} ANTHROPIC_AUTH_TOKEN={server.key} {_models(name)} "
        f"CLAUDE_CODE_MAX_CONTEXT_TOKENS={context} CLAUDE_CODE_ATTRIBUTION_HEADER=0 "
        f"CLAUDE_STREAM_IDLE_TIMEOUT_MS={CLAUDE_CODE_WAIT_MS}"
    )


def _more_context(server: Server) -> str:
    if server.max_context < CLAUDE_CODE_TOKENS:
        return f"this model has {server.max_context} at most"
    option = f"--context {CLAUDE_CODE_TOKENS}"
    return f"make the plan again with {option}" if isinstance(server.given, Plan) else f"start again with {option}"


def address_of(listen: ListenOptions, port: int) -> str:
    """The server's address for its clients: other machines where these can reach it, otherwise programs on this one."""
    return _url(listen, outside_address(listen.host) or listen.host, port)


def _url(listen: ListenOptions, host: str, port: int) -> str:
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http{'s' if listen.tls_cert else ''}://{host}:{port}"


def _reach(server: Server) -> str:
    """Who can use the server, and with what key."""
    here = ""
    if outside_address(server.listen.host) is not None:
        here = f" On this machine it is also {_url(server.listen, 'localhost', server.port)}."
    if server.api_keys:
        return f"Requests need an API key: one of {server.api_keys}, in place of {server.key} below.{here}\n"
    assert is_loopback(server.listen.host)  # others need keys
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
