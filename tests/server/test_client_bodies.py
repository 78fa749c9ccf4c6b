"""Bodies in the forms that coding agents send, with invented words: a real server answers all of them.

Recorded from Claude Code 2.1.332, Codex 0.171.0, Kimi Code 2.1.0 and opencode 1.18.33 (benchmarks/clients/coding.py
drives the real ones), each where a picture was read by a tool and the conversation went on.
"""

import httpx
import pytest

from .serving import HANG_SECONDS

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}


def text(words, **more):
    return {"type": "text", "text": words, **more}


def nested(name):
    return {"type": "function", "function": {"name": name, "description": "Looks.", "parameters": SCHEMA}}


def flat(name):
    return {"type": "function", "name": name, "description": "Looks.", "strict": False, "parameters": SCHEMA}


def message_item(role, words, kind="input_text"):
    return {"type": "message", "id": "msg_1", "role": role, "content": [{"type": kind, "text": words}]}


def called(id, name, **more):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": '{"path": "a.png"}'}, **more}


MESSAGES = {
    "messages": [
        {"role": "user", "content": [text("Remember the tide."), text("Look at a.png.")]},
        {"role": "system", "content": [text("Two tools wait.", cache_control={"type": "ephemeral"})]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "A tool finds it.", "signature": "unsigned"},
            {"type": "tool_use", "id": "toolu_0", "name": "Search", "input": {"path": "view"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_0", "content": [
                {"type": "tool_reference", "tool_name": "mcp__lamp__view"}], "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "toolu_1", "name": "mcp__lamp__view", "input": {"path": "a.png"}}]},
        {"role": "user", "content": [
            {"tool_use_id": "toolu_1", "type": "tool_result", "content": [
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}]}]},
        {"role": "system", "content": "The first tool is gone."},
        {"role": "user", "content": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
            text("And this?"), text("Go on.")]},
    ],
    "system": [text("You mind a lighthouse.", cache_control={"type": "ephemeral"})],
    "tools": [
        {"name": "Search", "description": "Finds tools.", "input_schema": SCHEMA},
        {"name": "Placeholder", "description": "Waits.", "input_schema": SCHEMA, "defer_loading": True},
        {"name": "mcp__lamp__view", "input_schema": SCHEMA, "defer_loading": True},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 3},
        {"type": "mcp_toolset", "mcp_server_name": "harbour"},
    ],
    "metadata": {"user_id": "{}"},
    "thinking": {"type": "adaptive", "display": "omitted"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
}  # fmt: skip
RESPONSES = {
    "input": [
        message_item("developer", "You mind a lighthouse."),
        message_item("user", "Look at a.png."),
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None,
         "content": [{"type": "reasoning_text", "text": "A tool sees it."}]},
        {"type": "function_call", "status": "completed", "id": "fc_1", "name": "view", "namespace": "mcp__lamp",
         "arguments": '{"path": "a.png"}', "call_id": "functions.mcp__lamp__view:0"},
        {"type": "function_call_output", "id": "fco_1", "call_id": "functions.mcp__lamp__view:0", "output": [
            {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}", "detail": "high"}]},
        {"type": "custom_tool_call", "call_id": "functions.patch:1", "name": "patch", "input": "+ a line"},
        {"type": "custom_tool_call_output", "call_id": "functions.patch:1", "output": "done"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
        message_item("assistant", "I looked.", "output_text"),
        {"type": "compaction", "encrypted_content": "c2VjcmV0"},
        message_item("user", "Go on."),
    ],
    "tools": [
        flat("view"),
        {"type": "namespace", "name": "mcp__lamp", "description": "A lamp.", "tools": [flat("view")]},
        {"type": "namespace", "name": "crew", "description": "Helpers.", "tools": [flat("view"), flat("spawn")]},
        {"type": "custom", "name": "patch", "description": "Changes a file.",
         "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "+ " /.+/'}},
        {"type": "web_search", "external_web_access": False},
        {"type": "image_generation"}, {"type": "tool_search"}, {"type": "local_shell"},
    ],
    "tool_choice": "auto", "parallel_tool_calls": True, "reasoning": {"summary": "auto"}, "store": False,
    "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k", "client_metadata": {"os": "lamp"},
}  # fmt: skip
KIMI = {
    "messages": [
        {"role": "system", "content": "You mind a lighthouse."},
        {"role": "user", "content": "Look at a.png."},
        {"role": "assistant", "content": "", "reasoning_content": "A tool sees it.",
         "tool_calls": [called("functions_Media_0", "Media", extras=None)]},
        {"role": "tool", "tool_call_id": "functions_Media_0", "content": [text("<image path=a.png>"), PICTURE]},
        {"role": "assistant", "content": "I looked."},
        {"role": "user", "content": "Go on."},
    ],
    "tools": [nested("Media"), {"type": "builtin_function", "function": {"name": "$web_search"}}],
    "stream_options": {"include_usage": True}, "prompt_cache_key": "k",
    "thinking": {"type": "enabled", "keep": "all"}, "max_completion_tokens": 4.0,
}  # fmt: skip
OPENCODE = {
    "messages": [
        {"role": "user", "content": '"Look at a.png."'},
        {"role": "assistant", "content": "", "reasoning_content": "A tool sees it.",
         "tool_calls": [called("functions.read:0", "read", type=None), called("functions.read:1", "read", type="")]},
        {"role": "tool", "tool_call_id": "functions.read:0", "content": "Read."},
        {"role": "tool", "tool_call_id": "functions.read:1", "content": "Read."},
        {"role": "user", "content": [text("Media of the result:"), PICTURE]},
    ],
    "tools": [nested("read")], "tool_choice": "auto", "stream_options": {"include_usage": True},
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "limit"),
    [
        ("/v1/messages", MESSAGES, "max_tokens"),
        ("/v1/responses", RESPONSES, "max_output_tokens"),
        ("/v1/chat/completions", KIMI, "max_completion_tokens"),
        ("/v1/chat/completions", OPENCODE, "max_tokens"),
    ],
    ids=["claude-code", "codex", "kimi-code", "opencode"],
)
def test_shape_of_a_client_is_answered(live_server, path, body, limit):
    whole = {"model": "gleam", "stream": True, limit: 4.0, **body}
    answer = httpx.post(live_server.url + path, json=whole, timeout=HANG_SECONDS)
    assert answer.status_code == 200, answer.text
    assert answer.text.rstrip().endswith(("[DONE]", "}"))
    assert '"failed"' not in answer.text


def test_deferred_tools_count_only_once_they_are_found(live_server):
    def tokens(messages):
        asked = {"model": "gleam", "messages": messages, "tools": MESSAGES["tools"]}
        return httpx.post(f"{live_server.url}/v1/messages/count_tokens", json=asked, timeout=HANG_SECONDS).json()[
            "input_tokens"
        ]

    found = MESSAGES["messages"][:5]
    unfound = [*found[:3], {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "toolu_0", "content": None}]}, found[4]]  # fmt: skip
    assert tokens(found) > tokens(unfound) + 20
