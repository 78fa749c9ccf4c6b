"""Coding agents, one question each, without a login: the protocol must work, whatever the model answers.
agents.py drives them through their tools.

`npm install @anthropic-ai/claude-code` speaks Anthropic's messages, `npm install @openai/codex` OpenAI's responses. No
tool is permitted to change anything. The instructions and tools that version 2.1.197 of the first sends take 28,000
tokens of gleam's vocabulary, those of 0.169.0 of the second 9,000, so the model needs a longer context than gleam's.
"""

import json
from pathlib import Path

from outcome import Check, Server, command

CLAUDE, CODEX = "npm/node_modules/.bin/claude", "npm/node_modules/.bin/codex"
INSTALL_CLAUDE, INSTALL_CODEX = "npm install @anthropic-ai/claude-code", "npm install @openai/codex"
_QUESTION = "Say one word."
_SECONDS = 300


def check_claude(program: Path, server: Server) -> list[Check]:
    """A question, twice: the second time most of the prompt is in the prefix cache."""
    first, _ = _claude(program, server, "one question")
    again, found = _claude(program, server, "the same again")
    return [first, Check("claude-code", "the same again", again.passed and found > 0, again.detail)]


def _claude(program: Path, server: Server, what: str) -> tuple[Check, int]:
    """The check, and the cached tokens that the server reports."""
    variables = {
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "DISABLE_AUTOUPDATER": "1",
    } | {f"ANTHROPIC_DEFAULT_{size}_MODEL": server.model for size in ("OPUS", "SONNET", "HAIKU")}
    words = [program, "-p", _QUESTION, "--model", server.model, "--output-format", "json", "--max-turns", "1"]
    done = command([*words, "--permission-mode", "plan"], _SECONDS, variables)
    answer = _parsed(done.out)
    if answer is None:
        return Check("claude-code", what, False, done.end), 0
    usage = answer.get("usage", {})
    found = usage.get("cache_read_input_tokens") or 0
    detail = f"{usage.get('input_tokens')} tokens in, {found} found, {usage.get('output_tokens')} out"
    # a model that calls a tool is stopped by the client's --max-turns, which is not an error of the protocol
    passed = answer.get("subtype") == "error_max_turns" or not answer.get("is_error")
    return Check("claude-code", what, passed, detail if passed else str(answer.get("result"))[:300]), found


def check_codex(program: Path, server: Server) -> list[Check]:
    """With its defaults, and without the tools that are not functions: namespaces, and a search that OpenAI runs."""
    plain = ["features.multi_agent=false", 'web_search="disabled"']
    return [_codex(program, server, "one question", []), _codex(program, server, "with functions alone", plain)]


def _codex(program: Path, server: Server, what: str, more: list[str]) -> Check:
    provider = f'{{name="earthshine", base_url="{server.url}/v1", wire_api="responses"}}'
    settings = [f"model_providers.earthshine={provider}", 'model_provider="earthshine"', f'model="{server.model}"']
    settings += [f"model_context_window={server.context_tokens}", "analytics.enabled=false", *more]
    words: list[str | Path] = [program, "exec", "--json", "--sandbox", "read-only", "--skip-git-repo-check"]
    for setting in settings:
        words += ["-c", setting]
    done = command([*words, "--ephemeral", _QUESTION], _SECONDS)
    events = [event for line in done.out.splitlines() if (event := _parsed(line)) is not None]
    ends = [event for event in events if event.get("type") in ("turn.completed", "turn.failed")]
    if not ends:
        return Check("codex", what, False, done.end)
    passed = ends[-1]["type"] == "turn.completed"
    return Check("codex", what, passed, json.dumps(ends[-1].get("usage" if passed else "error"))[:300])


def _parsed(line: str) -> dict | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
