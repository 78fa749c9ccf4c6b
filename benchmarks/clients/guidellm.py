"""guidellm (`pip install guidellm`): eight synthetic requests, two at once, over each API that it supports."""

import json
import tempfile
from pathlib import Path

from outcome import Check, Server, command

PROGRAM = "guidellm/bin/guidellm"
INSTALL = "pip install guidellm"
_REQUESTS, _PROMPT, _REPLY = 8, 64, 16
_FORMATS = ("/v1/completions", "/v1/chat/completions", "/v1/responses")


def check(program: Path, server: Server) -> list[Check]:
    return [_format(program, server, form) for form in _FORMATS]


def _format(program: Path, server: Server, form: str) -> Check:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "report.json"
        words = [program, "run", "--disable-console"]
        words += ["--backend", f"kind=openai_http,target={server.url},model={server.model},request_format={form}"]
        words += ["--profile", "kind=concurrent,streams=2", "--constraint", f"kind=max_requests,count={_REQUESTS}"]
        words += ["--tokenizer", f"kind=huggingface_auto,model={server.tokenizer}"]
        words += ["--data", f"kind=synthetic_text,prompt_tokens={_PROMPT},output_tokens={_REPLY}"]
        words += ["--output", f"kind=json,path={place}"]
        done = command(words, 300, {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
        if not place.exists():
            return Check("guidellm", form, False, done.end)
        totals = json.loads(place.read_text())["benchmarks"][0]["metrics"]["request_totals"]
    passed = totals["successful"] == _REQUESTS and totals["errored"] == 0
    return Check("guidellm", form, passed, f"{totals['successful']} answered, {totals['errored']} failed")
