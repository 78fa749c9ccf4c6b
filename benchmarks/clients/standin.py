"""`earthshine serve` with gleam, but what the model writes is read from the prompt: for clients that gleam can't drive.

python benchmarks/clients/standin.py [--port 8000] [--capture FOLDER]

HTTP, the APIs, templates, tokens, grammars and the parser of replies are Earthshine's own; only the computation of
tokens is replaced. The last user message that holds <plan>[...]</plan>, a JSON list of steps, gives what is written:
step N for the reply number N after that message. A step is {"say": TEXT}, or {"call": NAME, "arguments": {...}}; before
each there is a short thought. A call of a function that the request does not declare is answered with a sentence that
begins "No function", and a prompt without a plan with "No plan.". With `--capture` the bodies of requests are kept as
files.
"""

import argparse
import contextlib
import json
import threading
from pathlib import Path
from typing import Any

from agent_clients import CONTEXT_TOKENS
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from earthshine.cli import serve
from earthshine.engine import Admitted, Engine, Failed, Finished, Request, Sink, TokenEvent
from earthshine.errors import EarthshineError
from earthshine.hub import GLEAM
from earthshine.net.listen import ListenOptions
from earthshine.plan import PlanArgs
from earthshine.text import load_tokenizer

_BEGIN, _END = "<plan>", "</plan>"


def split_messages(text: str) -> list[tuple[str, str]]:
    """Role and text of each message of a prompt in Kimi's format; the last one is empty, for the reply."""
    found = []
    for part in (
        text.replace("<|im_user|>", "\0u")
        .replace("<|im_assistant|>", "\0a")
        .replace("<|im_system|>", "\0s")
        .split("\0")[1:]
    ):
        head, _, rest = part.partition("<|im_middle|>")
        role = {"u": "user", "a": "assistant"}.get(head[0], head[1:])
        found.append((role, rest.removesuffix("<|im_end|>")))
    return found


def _steps(text: str) -> list[dict[str, Any]] | None:
    """The plan, which some clients quote once more (opencode does)."""
    plan = text[text.index(_BEGIN) + len(_BEGIN) : text.rindex(_END)]
    for given in (plan, plan.replace('\\"', '"')):
        with contextlib.suppress(ValueError):
            return list(json.loads(given))
    return None


def next_step(prompt: str) -> dict[str, Any]:
    """The next step of the prompt's plan."""
    messages = split_messages(prompt)
    planned = [at for at, (role, text) in enumerate(messages) if role == "user" and _BEGIN in text and _END in text]
    if not planned:
        return {"say": "No plan."}
    steps = _steps(messages[planned[-1]][1])
    if steps is None:
        return {"say": "No plan."}
    done = sum(role == "assistant" for role, _ in messages[planned[-1] : -1])
    step: dict[str, Any] = steps[min(done, len(steps) - 1)]
    tools = next((text for role, text in messages if role == "tool_declare"), "")
    if "call" in step and not any(mark in tools for mark in (f"type {step['call']} =", f'"name":"{step["call"]}"')):
        return {"say": f"No function {step['call']} is declared."}
    return step


def written(step: dict[str, Any], n_calls: int, thinking: bool) -> str:
    """The step as Kimi writes it, behind a prompt that leaves a thought open or not."""
    begun = "I follow the plan.</think>" if thinking else ""
    if "say" in step:
        return f"{begun}{step['say']}<|im_end|>"
    call = f"functions.{step['call']}:{n_calls}<|tool_call_argument_begin|>{json.dumps(step.get('arguments', {}))}"
    section = f"<|tool_calls_section_begin|><|tool_call_begin|>{call}<|tool_call_end|><|tool_calls_section_end|>"
    return f"{begun}{section}<|im_end|>"


class ScriptedEngine(Engine):
    """The engine with a longer context, whose replies come from plans and not from the model."""

    @property
    def context_tokens(self) -> int:
        return CONTEXT_TOKENS

    def submit(self, request: Request, sink: Sink) -> Any:
        ended = threading.Event()
        threading.Thread(target=self._reply, args=(request, sink, ended), daemon=True).start()
        return ended

    def cancel(self, ticket: Any) -> None:
        ticket.set()

    def _reply(self, request: Request, sink: Sink, ended: threading.Event) -> None:
        prompt = _TOKENIZER.decode(request.tokens)
        step = next_step(prompt)
        reply = written(step, prompt.count("<|tool_call_begin|>"), prompt.endswith("<think>"))
        sink(Admitted(0))
        try:
            for produced, token in enumerate(_TOKENIZER.encode(reply, True), 1):
                if ended.is_set():
                    return sink(Finished("cancelled"))
                if request.constraint is not None:
                    request.constraint.accept(token)
                if token in self._model.spec.stop_tokens:
                    return sink(Finished("stop", token))
                sink(TokenEvent(token, -0.5, ()))
                if produced == request.params.max_tokens:
                    return sink(Finished("length"))
        except EarthshineError as error:  # the plan writes what the request's grammar does not allow
            return sink(Failed(error))
        return sink(Finished("stop", self._model.spec.stop_tokens[0]))


class Capture:
    """Keeps the body of each POST as FOLDER/NUMBER-PATH.json, and passes it on."""

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self._app, self._folder, self._count = app, folder, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        self._count += 1
        file = self._folder / f"{self._count:04}-{scope['path'].strip('/').replace('/', '-')}.json"

        async def keep() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                with file.open("ab") as kept:
                    kept.write(message.get("body", b""))
            return message

        await self._app(scope, keep, send)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--capture", type=Path, help="a folder for the requests' bodies")
    arguments = parser.parse_args()
    make_app = serve.make_app

    def captured(*given: Any) -> Any:
        app = make_app(*given)
        if arguments.capture is not None:
            arguments.capture.mkdir(parents=True, exist_ok=True)
            app.add_middleware(Capture, folder=arguments.capture)
        return app

    serve.Engine, serve.make_app = ScriptedEngine, captured  # type: ignore[misc]
    serve.run_serve(None, serve.ServeOptions(ListenOptions(port=arguments.port), PlanArgs()))


_TOKENIZER = load_tokenizer(GLEAM)

if __name__ == "__main__":
    main()
