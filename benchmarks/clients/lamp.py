"""A tiny MCP server on standard input and output: one tool, `glow`, whose answer shows that it ran."""

import json
import sys
from typing import Any

TOOL = {
    "name": "glow",
    "description": "How bright the lamp glows in a colour.",
    "inputSchema": {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]},
}
ANSWER = "glows at 7 candela"


def answer(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a request; None for one that this server does not know."""
    if method == "initialize":
        info = {"name": "lamp", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": info}
    if method == "tools/list":
        return {"tools": [TOOL]}
    if method == "tools/call":
        return {"content": [{"type": "text", "text": f"{params['arguments'].get('colour')} {ANSWER}"}]}
    return {} if method == "ping" else None


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        if "id" not in asked:
            continue
        result = answer(asked["method"], asked.get("params") or {})
        reply = {"jsonrpc": "2.0", "id": asked["id"]}
        unknown = {"error": {"code": -32601, "message": "There is no such method."}}
        print(json.dumps(reply | (unknown if result is None else {"result": result})), flush=True)


if __name__ == "__main__":
    main()
