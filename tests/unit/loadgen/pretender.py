"""A server that answers at once and records its requests, to test the load generator.

`python pretender.py` serves on a port that it prints, until its standard input ends.
"""

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

Piece = tuple[float, str]  # seconds to wait, then text
END = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Pretender:
    """Runs in a thread of its own. `answer` may replace an answer by raw bytes; `pieces` says what a stream says."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.models: object = {"data": [{"id": "small", "max_model_len": 4096}]}
        self.answer: Callable[[dict[str, Any]], bytes | None] = lambda body: None
        self.pieces: Callable[[dict[str, Any]], list[Piece]] = lambda body: [(0, "x")] * body["max_tokens"]
        self.cached = 0
        self.closing = False  # no connection is answered any more
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        self._ready.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def streams(self) -> list[dict[str, Any]]:
        return [body for body in self.bodies if body.get("stream")]

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def stop_listening(self) -> None:
        """From now on connections are refused."""
        self._loop.call_soon_threadsafe(self._server.close)

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._server = await asyncio.start_server(self._client, "127.0.0.1", 0, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        self._server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(head.lower().split("content-length:")[1].split("\r\n")[0])
            body = json.loads(await reader.readexactly(length) or b"null")
            self.heads.append(head)
            if head.startswith("GET /v1/models"):
                writer.write(whole(200, self.models))
            else:
                self.bodies.append(body)
                await self._reply(head, body, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _reply(self, head: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        raw = self.answer(body)
        if raw is not None:
            writer.write(raw)
            return
        chat = "chat" in head.split()[1]
        prompt = len(body["prompt"]) if not chat else 7 + 2 * len(body["messages"][0]["content"].split())
        pieces = self.pieces(body)
        usage = {"prompt_tokens": prompt, "completion_tokens": len(pieces)}
        usage["prompt_tokens_details"] = {"cached_tokens": min(self.cached, prompt)}  # type: ignore[assignment]
        if not body.get("stream"):
            writer.write(whole(200, {"choices": [{"text": "x"}], "usage": usage}))
            return
        writer.write(END)
        for seconds, text in pieces:
            if seconds:
                await asyncio.sleep(seconds)
            choice = {"delta": {"content": text}} if chat else {"text": text}
            writer.write(chunk(json.dumps({"choices": [{"index": 0} | choice]})))
            await writer.drain()
        writer.write(chunk(json.dumps({"choices": [], "usage": usage})) + chunk("[DONE]") + b"0\r\n\r\n")


def chunk(data: str) -> bytes:
    """One server-sent event as one chunk."""
    raw = f"data: {data}\n\n".encode()
    return f"{len(raw):x}\r\n".encode() + raw + b"\r\n"


def whole(status: int, value: object) -> bytes:
    """An answer of known length."""
    raw = json.dumps(value).encode()
    return f"HTTP/1.1 {status} Some\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw


if __name__ == "__main__":
    server = Pretender()
    print(server.url, flush=True)
    sys.stdin.read()
